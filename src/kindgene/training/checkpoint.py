"""Checkpoints on disk: whole or not there at all, checked before they are used.

A checkpoint is a folder ``checkpoints/step-00000100`` of safetensors files and a ``state.json``, which holds
the SHA-256 of each of them and of itself. It is written under a temporary name, flushed, and renamed: a crash
at any moment leaves the checkpoints before it as they were. One that is truncated or damaged later is passed
over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kindgene import files

FORMAT = 1

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be whole. `state` is what was saved beside the tensors."""

    path: Path
    step: int
    state: dict[str, Any]
    names: tuple[str, ...]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, on the CPU."""
        return files.read_safetensors(self.file(name))

    def file(self, name: str) -> Path:
        """Where the tensors called `name` are."""
        return self.path / f"{name}.safetensors"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Writes `folder`/step-N, a file a name, and returns its path. Raises OSError and leaves nothing then."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    path = folder / f"step-{step:08d}"
    try:
        temporary.chmod(0o777 & ~files.umask())
        for name, values in tensors.items():
            files.write_safetensors(temporary / f"{name}.safetensors", values)
        digests = {name: files.sha256(temporary / f"{name}.safetensors") for name in tensors}
        body = {"format": FORMAT, "step": step, "sha256": digests, "state": dict(state)}
        files.write_json(temporary / "state.json", {**body, "check": _digest(body)})
        if path.exists():  # one of the same step that was passed over: it goes only now
            path.rename(folder / f"{_TEMPORARY}old-{path.name}")
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    files.sync_folder(folder)
    _sweep(folder)
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


def open_checkpoint(path: Path) -> Checkpoint:
    """Checks every file of a checkpoint. Raises ValueError naming the first that is not what was written."""
    source = path / "state.json"
    body = files.read_json(source)
    if not isinstance(body, dict) or not isinstance(body.get("sha256"), dict):
        raise ValueError(f"{source}: is not a checkpoint's state")
    if body.get("format") != FORMAT:
        raise ValueError(f"{source}: is of format {body.get('format')!r}, this version of kindgene reads {FORMAT}")
    if body.pop("check", None) != _digest(body):
        raise ValueError(f"{source}: has been damaged or changed (its own checksum does not match)")
    for name, expected in body["sha256"].items():
        found = files.sha256(path / f"{name}.safetensors")
        if found != expected:
            raise ValueError(
                f"{path / name}.safetensors: is damaged or truncated: SHA-256 {found[:16]}…, expected {expected[:16]}…"
            )
    return Checkpoint(path, body["step"], body["state"], tuple(body["sha256"]))


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
