"""A pool's folder: what is written when, so that a crash leaves the old pool or the new one.

config.json is the only commit point. New tailors are written first, under names that no other content has; then
config.json is replaced, under a lock and only if it is the one that was read; then files that no class refers to any
more are deleted, and the model card is written anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import filelock
from torch import Tensor

from kindgene.core.pieces import State
from kindgene.files import in_threads, is_leftover, read_json, sync_folder, write_bytes, write_json, write_pieces
from kindgene.pool.card import model_card
from kindgene.pool.classes import ClassTable
from kindgene.pool.config import PoolConfig
from kindgene.pool.tailor import Tailor, as_tailor, write_tailors
from kindgene.pool.tensors import check_finite, encode, parse, read_bytes, sha256_of

CONFIG_FILE = "config.json"
LEARNGENE_FILE = "learngene.safetensors"
TAILOR_FOLDER = "tailors"
CARD_FILE = "README.md"
LOCK_FILE = ".lock"

Change = Callable[[PoolConfig], PoolConfig]


def read_config(root: Path) -> PoolConfig:
    """Reads config.json. Raises ValueError for a folder that does not exist or is not a pool."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder of a pool (the one that holds {CONFIG_FILE})")
    path = root / CONFIG_FILE
    if not path.exists():
        raise ValueError(f"{root} has no {CONFIG_FILE}, so it is not a pool")
    return PoolConfig.from_json(read_json(path), str(path))


def read_parts(root: Path, config: PoolConfig, names: Sequence[str]) -> tuple[State, list[Tailor]]:
    """Reads the learngene and the tailors of these classes, each file once and several at once.

    Raises ValueError naming the file, what was expected and what was found.
    """
    files = _files_of(config, names)
    data, *others = _contents(root, {LEARNGENE_FILE: config.learngene_sha256, **files})
    learngene = _as_learngene(root / LEARNGENE_FILE, data, config)
    return learngene, _as_tailors(root, config, files, others, learngene)


def read_tailors(root: Path, config: PoolConfig, names: Sequence[str], learngene: State) -> list[Tailor]:
    """Reads the tailors of these classes, each file once and several at once. Raises ValueError alike."""
    files = _files_of(config, names)
    return _as_tailors(root, config, files, _contents(root, files), learngene)


def verify(root: Path) -> None:
    """Reads and checks every file that the config refers to, one tailor at a time, and that nothing else lies there.

    Raises ValueError naming the first file that is wrong, or that no class refers to.
    """
    config = read_config(root)
    if isinstance(config.classes, ClassTable):
        config.classes.check()
    learngene, _ = read_parts(root, config, ())
    files = {entry.file: name for name, entry in config.classes.items()}
    for name in files.values():
        read_tailors(root, config, [name], learngene)
    for path in sorted((root / TAILOR_FOLDER).rglob("*.safetensors")):
        if path.relative_to(root).as_posix() not in files:
            raise ValueError(f"{path} is of no class of this pool; the next change of the pool removes it")


def write_pool(root: Path, config: PoolConfig, learngene: State, tailors: Sequence[Tailor]) -> PoolConfig:
    """Writes a whole pool into a new or empty folder; returns the config with files and hashes filled in.

    What was written is deleted again if an error stops it before config.json is there.
    """
    fresh = not root.exists()
    if not fresh and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} exists and is not an empty folder; choose a new one (nothing was written)")
    data = encode(learngene, {"format": "kindgene-learngene", "learngene_id": config.learngene_id})
    root.mkdir(parents=True, exist_ok=True)
    try:
        sync_folder(root.parent)
        with ThreadPoolExecutor(1) as beside:
            written = beside.submit(write_pieces, root / LEARNGENE_FILE, data)
            config = _write_tailors(root, config, tailors)
            config = replace(config, learngene_sha256=sha256_of(data), generation=1)
            written.result()
        sync_folder(root)
        write_bytes(root / CARD_FILE, model_card(config, learngene).encode())
        write_json(root / CONFIG_FILE, config.to_json())
    except BaseException:
        if not (root / CONFIG_FILE).exists():
            _delete_remains(root, fresh)
        raise
    return config


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keeps other writers of this pool waiting."""
    read_config(root)  # a lock is put into a pool alone, never into another folder
    with filelock.FileLock(root / LOCK_FILE):
        yield


def commit(root: Path, seen: PoolConfig, change: Change, new: Sequence[Tailor]) -> PoolConfig:
    """Writes new tailors, then config.json as `change` makes it of the one there is now; call it `locked`.

    What others added or removed since the pool was `seen` stays as they left it; `change` raises where it depends on
    what they changed. Raises ValueError, with nothing changed, if the learngene is another one. Call `tidy` afterwards.
    """
    current = read_config(root)
    if current.learngene_id != seen.learngene_id:
        raise ValueError(
            f"{root} was changed since it was opened here, it holds another learngene: open the pool again and repeat"
        )
    try:
        config = _write_tailors(root, change(current), new)
        write_json(root / CONFIG_FILE, config.to_json())
    except BaseException:
        with suppress(OSError):
            _collect_garbage(root, read_config(root))
        raise
    return config


def tidy(root: Path, config: PoolConfig, learngene: State) -> None:
    """Deletes what no class refers to any more and writes the model card; call it `locked`, after `commit`."""
    _collect_garbage(root, config)
    write_bytes(root / CARD_FILE, model_card(config, learngene).encode())


def _files_of(config: PoolConfig, names: Sequence[str]) -> dict[str, str]:
    """The files of these classes' tailors and their hashes."""
    return {entry.file: entry.sha256 for entry in (config.classes[name] for name in names)}


def _contents(root: Path, files: Mapping[str, str]) -> list[Tensor]:
    """What files hold, read and compared with their hashes side by side."""
    return in_threads(lambda one: read_bytes(root / one[0], one[1]), list(files.items()))


def _as_tailors(
    root: Path, config: PoolConfig, files: Iterable[str], contents: Iterable[Tensor], learngene: State
) -> list[Tailor]:
    """In one thread: it is Python's own work, of which two threads only hinder each other."""
    return [as_tailor(root / f, data, config, f, learngene) for f, data in zip(files, contents, strict=True)]


def _as_learngene(path: Path, data: Tensor, config: PoolConfig) -> State:
    """The learngene: this pool's own, finite, with the components and null rows that the config says."""
    state, metadata = parse(path, data)
    found = str(metadata.get("learngene_id"))
    if found != config.learngene_id:
        raise ValueError(f"{path} is another learngene ({found[:16]}; this pool has {config.learngene_id[:16]})")
    for target, ranks in config.ranks.items():
        total, parts = sum(ranks), len(ranks)
        for factor, dimensions in (("u", 2), ("s", 1), ("v", 2)):
            _expect(path, state, f"{target}.{factor}", dimensions, total)
        bias = state.get(f"{target}.bias")
        outputs = state[f"{target}.u"].shape[1] * parts
        if bias is not None and tuple(bias.shape) != (outputs,):
            raise ValueError(f"{path}: {target}.bias has shape {list(bias.shape)}, expected [{outputs}]")
    for table in config.label_tables:
        _expect(path, state, f"{table}.null_row", 1, None)
    check_finite(path, state)
    return state


def _write_tailors(root: Path, config: PoolConfig, tailors: Sequence[Tailor]) -> PoolConfig:
    new = [(tailor, config.tailor_ranks_of(tailor.classes[0])) for tailor in tailors]
    written = write_tailors(root, new, config.learngene_id)
    return replace(config, classes={name: written.get(name, entry) for name, entry in config.classes.items()})


def _collect_garbage(root: Path, config: PoolConfig) -> None:
    """Deletes tailor files that no class refers to, and what interrupted writes left."""
    used = {entry.file for entry in config.classes.values()}
    tailors = root / TAILOR_FOLDER
    for place, _, names in os.walk(tailors):
        inside = Path(place).relative_to(root).as_posix()  # as config.json has it: a Path for every file costs more
        for name in names:
            if is_leftover(name) or (name.endswith(".safetensors") and f"{inside}/{name}" not in used):
                Path(place, name).unlink()
    for path in root.glob(".*"):
        if is_leftover(path.name):
            path.unlink()
    for path in tailors.glob("*"):
        with suppress(OSError):  # not empty: still used
            path.rmdir()


def _delete_remains(root: Path, fresh: bool) -> None:
    with suppress(OSError):
        for file in (LEARNGENE_FILE, CARD_FILE):
            (root / file).unlink(missing_ok=True)
        if (root / TAILOR_FOLDER).exists():
            shutil.rmtree(root / TAILOR_FOLDER)
        if fresh:
            root.rmdir()


def _expect(path: Path, state: State, key: str, dimensions: int, first: int | None) -> None:
    if key not in state:
        raise ValueError(f"{path}: {key} is missing")
    shape = list(state[key].shape)
    if len(shape) != dimensions or (first is not None and shape[0] != first):
        raise ValueError(
            f"{path}: {key} has shape {shape}, expected {dimensions} dimensions, the first {first or 'any'}"
        )
