"""Checkpoints on disk: whole or not there at all, checked before they are used.

A checkpoint is a folder ``checkpoints/step-00000100`` of safetensors files and a ``state.json``, which holds
the SHA-256 of each of them and of itself. It is written under a temporary name, flushed, and renamed: a crash
at any moment leaves the checkpoints before it as they were. One that is truncated or damaged later is passed
over for the one before.

Where each process holds rows of its own (`placement.py`), each writes them into files of its own beside those of the
main process: ``model-rows-00001-of-00004.safetensors``. They hold, beside the rows, which ones these are; so they are
read by any number of processes, each taking its own.

Shapes: N rows of a table, H of them in one file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from kindgene import files
from kindgene.training.processes import ALONE, Processes

Held = Mapping[str, Tensor]
"""Ids [H] of the rows that a process holds, ascending, by the state-dict name of their table."""

FORMAT = 1

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"
_SHARD, _IDS = "-rows-", "ids."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be whole. `state` is what was saved beside the tensors."""

    path: Path
    step: int
    state: dict[str, Any]
    contents: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What it holds tensors of: "model", "optimizer", ..."""
        return tuple(name for name in self.contents if _SHARD not in name)

    def tensors(self, name: str, held: Held | None = None) -> dict[str, Tensor]:
        """The tensors called `name`, on the CPU; of a table's rows those in `held`, or all of a table not there."""
        tensors = files.read_safetensors(self.file(name))
        for key, value in tensors.items():
            for table in [] if held is None else [table for table in held if key.endswith(table)]:
                tensors[key] = value[held[table]]  # type: ignore[index]  # not None then
        return {**tensors, **_rows(self._shards(name), held)}

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors called `name`; no tensor is read."""
        shapes = files.read_shapes(self.file(name))
        for path in self._shards(name):
            for key, (count, *rest) in files.read_shapes(path).items():
                if not key.startswith(_IDS):
                    shapes[key] = (shapes.get(key, (0,))[0] + count, *rest)
        return shapes

    def file(self, name: str) -> Path:
        """Where the tensors called `name` are, but for rows that were saved by their processes."""
        return self.path / f"{name}.safetensors"

    def _shards(self, name: str) -> list[Path]:
        return [self.file(shard) for shard in self.contents if shard.startswith(name + _SHARD)]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    processes: Processes = ALONE,
    rows: Mapping[str, Mapping[str, Tensor]] | None = None,
    held: Held | None = None,
) -> Path:
    """Writes `folder`/step-N, a file a name, and returns its path. Raises OSError and leaves nothing then.

    All processes call it: the main one with all `tensors` that are not rows of one process alone, each with its own
    `rows` [H, ...] by the same names and keys, and the ids of those in `held` by table. Where one fails all raise.
    """
    temporary = Path(processes.share(processes.first(lambda: str(_begin(folder)))))
    path = folder / f"step-{step:08d}"
    own = dict(tensors) if processes.main else {}
    if rows is not None and held is not None:
        shard = f"{_SHARD}{processes.rank:05d}-of-{processes.size:05d}"
        ids = {f"{_IDS}{table}": ids for table, ids in held.items()}
        own |= {name + shard: {**part, **ids} for name, part in rows.items()}
    try:
        digests = _write_all(temporary, own, processes)
        processes.first(lambda: _commit(temporary, path, step, digests, state))
    except BaseException:
        if processes.main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def limit_checkpoints(folder: Path, limit: int | None) -> None:
    """Removes all but the `limit` latest checkpoints; None keeps all."""
    if limit is not None:
        for path in _all(folder)[limit:]:
            path.rename(folder / f"{_TEMPORARY}old-{path.name}")
        _sweep(folder)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The latest checkpoint that is whole; None where there are none at all.

    One that is not is named in a warning (``logging``) and passed over. Raises ValueError where none is
    whole.
    """
    wrong = []
    for path in _all(folder):
        try:
            return open_checkpoint(path)
        except ValueError as error:
            _LOG.warning("passing over a damaged checkpoint: %s", error)
            wrong.append(str(error))
    if wrong:
        raise ValueError(f"{folder}: none of {len(wrong)} checkpoints is whole; the latest: {wrong[0]}")
    return None


def open_checkpoint(path: Path, *, checked: bool = False) -> Checkpoint:
    """Checks every file of a checkpoint. Raises ValueError naming the first that is not what was written.

    With `checked` the files were found whole just now, by another process, and are not read again.
    """
    source = path / "state.json"
    body = files.read_json(source)
    if not isinstance(body, dict) or not isinstance(body.get("sha256"), dict):
        raise ValueError(f"{source}: is not a checkpoint's state")
    if body.get("format") != FORMAT:
        raise ValueError(f"{source}: is of format {body.get('format')!r}, this version of kindgene reads {FORMAT}")
    if body.pop("check", None) != _digest(body):
        raise ValueError(f"{source}: has been damaged or changed (its own checksum does not match)")
    for name, expected in ({} if checked else body["sha256"]).items():
        found = files.sha256(path / f"{name}.safetensors")
        if found != expected:
            raise ValueError(
                f"{path / name}.safetensors: is damaged or truncated: SHA-256 {found[:16]}…, expected {expected[:16]}…"
            )
    return Checkpoint(path, body["step"], body["state"], tuple(body["sha256"]))


def drop_later(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps: the run goes back to this one."""
    for path in _all(folder):
        if int(path.name.removeprefix("step-")) > step:
            path.rename(folder / f"{_TEMPORARY}old-{path.name}")
    _sweep(folder)


def _begin(folder: Path) -> Path:
    """An empty folder under a temporary name."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    temporary.chmod(0o777 & ~files.umask())
    return temporary


def _write_all(folder: Path, own: Mapping[str, Mapping[str, Tensor]], processes: Processes) -> dict[str, str]:
    """Each process writes a file a name of its own; the SHA-256 of them all. Where one fails, all raise."""
    digests: dict[str, str] = {}
    wrong: OSError | SafetensorError | None = None
    try:
        for name, values in own.items():
            files.write_safetensors(folder / f"{name}.safetensors", values)
            digests[name] = files.sha256(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:  # told to the others first, who would wait for ever
        wrong = error
    written = processes.gather((digests, None if wrong is None else str(wrong)))
    if wrong is not None:
        raise wrong
    reasons = [reason for _, reason in written if reason is not None]
    if reasons:
        raise OSError(f"{folder}: another process could not write: {reasons[0]}")
    return {name: digest for part, _ in written for name, digest in part.items()}


def _commit(temporary: Path, path: Path, step: int, digests: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Writes the state and gives the folder its name: from here on the checkpoint is there."""
    body = {"format": FORMAT, "step": step, "sha256": dict(digests), "state": dict(state)}
    files.write_json(temporary / "state.json", {**body, "check": _digest(body)})
    if path.exists():  # one of the same step that was passed over: it goes only now
        path.rename(path.parent / f"{_TEMPORARY}old-{path.name}")
    temporary.rename(path)
    files.sync_folder(path.parent)
    _sweep(path.parent)


def _rows(shards: Sequence[Path], held: Held | None) -> dict[str, Tensor]:
    """The rows in these files, put together in the order of their ids: those in `held` [H] by table, or all N."""
    parts: dict[str, list[Tensor]] = {}
    for path in shards:
        values = files.read_safetensors(path)
        for table in [key.removeprefix(_IDS) for key in values if key.startswith(_IDS)]:
            ids = values[_IDS + table]
            wanted = None if held is None else held.get(table)
            kept = torch.ones_like(ids, dtype=torch.bool) if wanted is None else torch.isin(ids, wanted)
            for key, value in values.items():
                if key.endswith(table):
                    parts.setdefault(key, []).append(value[kept])
    joined = {key: torch.cat(found) for key, found in parts.items()}
    for table in [key.removeprefix(_IDS) for key in joined if key.startswith(_IDS)]:
        order = joined.pop(_IDS + table).argsort()
        joined |= {key: value[order] for key, value in joined.items() if key.endswith(table)}
    return joined


def _all(folder: Path) -> list[Path]:
    """Checkpoint folders by step, the latest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(((int(match[1]), path) for match, path in found), reverse=True)]


def _sweep(folder: Path) -> None:
    """Removes what an interrupted writer left under temporary names, and what is marked to go."""
    for path in folder.iterdir():
        if path.name.startswith(_TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
