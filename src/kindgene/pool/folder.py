"""A pool's folder: what is written when, so that a crash leaves the old pool or the new one.

config.json is the only commit point. New tailors are written first, under names that no other content has; then
config.json is replaced, under a lock and only if its generation is the one that was read; then files that no class
refers to any more are deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import filelock
import safetensors.torch

from kindgene.core.pieces import State
from kindgene.files import read_json, sha256, write_bytes, write_json, write_safetensors
from kindgene.pool.card import model_card
from kindgene.pool.config import LEARNGENE_FILE, ClassEntry, PoolConfig
from kindgene.pool.tailor import Tailor, read_checked, read_tailor, write_tailor

CONFIG_FILE = "config.json"
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


def read_learngene(root: Path, config: PoolConfig) -> State:
    """Reads the learngene; every target's components must be there with the ranks that the config says."""
    path = root / LEARNGENE_FILE
    state, _ = read_checked(path, config.learngene_sha256)
    for target, ranks in config.ranks.items():
        for factor in "usv":
            key = f"{target}.{factor}"
            if key not in state or state[key].shape[0] != sum(ranks):
                found = list(state[key].shape) if key in state else "nothing"
                raise ValueError(f"{path}: {key} should have {sum(ranks)} components, found {found}")
    return state


def read_tailors(root: Path, config: PoolConfig, names: Sequence[str], learngene: State) -> list[Tailor]:
    """Reads the tailors of these classes, each file once."""
    files = dict.fromkeys(config.classes[name].file for name in names)
    return [read_tailor(root, config, file, learngene) for file in files]


def write_pool(root: Path, config: PoolConfig, learngene: State, tailors: Sequence[Tailor]) -> PoolConfig:
    """Writes a whole pool into a new or empty folder; returns the config with files and hashes filled in."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} exists and is not empty; choose a new folder (nothing was written)")
    root.mkdir(parents=True, exist_ok=True)
    write_safetensors(root / LEARNGENE_FILE, learngene, {"format": "kindgene-learngene", "id": config.learngene_id})
    config = replace(config, learngene_sha256=sha256(root / LEARNGENE_FILE), generation=1)
    config = replace(config, classes=_write_tailors(root, config, tailors))
    write_bytes(root / CARD_FILE, model_card(config, learngene).encode())
    write_json(root / CONFIG_FILE, config.to_json())
    return config


def update_pool(root: Path, seen: PoolConfig, change: Change, new: Sequence[Tailor]) -> PoolConfig:
    """Adds or removes tailors. Raises ValueError, with nothing changed, if another process got in between."""
    with filelock.FileLock(root / LOCK_FILE):
        current = read_config(root)
        if current.generation != seen.generation:
            raise ValueError(
                f"{root} was changed by another process (generation {current.generation}, you opened "
                f"{seen.generation}): open the pool again and repeat"
            )
        config = change(current)
        config = replace(config, classes={**config.classes, **_write_tailors(root, config, new)})
        config = replace(config, classes={name: config.classes[name] for name in change(current).classes})
        write_json(root / CONFIG_FILE, config.to_json())
        write_bytes(root / CARD_FILE, model_card(config, read_learngene(root, config)).encode())
        _collect_garbage(root, config)
    return config


def _write_tailors(root: Path, config: PoolConfig, tailors: Sequence[Tailor]) -> dict[str, ClassEntry]:
    written: dict[str, ClassEntry] = {}
    for tailor in tailors:
        ranks = config.tailor_ranks_of(tailor.classes[0])
        written.update(write_tailor(root, tailor, config.learngene_id, ranks))
    return {**{name: entry for name, entry in config.classes.items() if name not in written and entry.file}, **written}


def _collect_garbage(root: Path, config: PoolConfig) -> None:
    """Deletes tailor files that no class refers to, and what an interrupted write left."""
    used = {root / entry.file for entry in config.classes.values()}
    for path in (root / "tailors").rglob("*"):
        if path.is_file() and path not in used:
            path.unlink()
    for path in sorted((root / "tailors").glob("*")):
        with suppress(OSError):  # not empty: still used
            path.rmdir()
