"""A pool's config.json: the one file that says what the pool is (DESIGN section 6). Values, checked when read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kindgene._version import __version__
from kindgene.pool.names import TAILOR_FILE, check_class_names

FORMAT_VERSION = 1

Ranks = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ClassEntry:
    """Where a class lives: its tailor's file, the file's hash, the tailor's ranks and its label row in that file.

    `tailor_ranks` is one int where every part of every target has it, else target -> rank of each part. A
    class that is in memory only has no file ("").
    """

    file: str
    sha256: str
    tailor_ranks: int | Ranks
    row: int


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Everything about a pool but the tensors. `ranks`: target -> rank of each of its parts, of the learngene."""

    backbone: str
    backbone_config: dict[str, Any]
    ranks: Ranks
    label_tables: tuple[str, ...]
    label_argument: str
    learngene_id: str
    learngene_sha256: str
    weights: str
    classes: dict[str, ClassEntry]
    generation: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "kindgene-pool",
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
            "null_label": len(self.classes),
            **asdict(self),
        }

    @classmethod
    def from_json(cls, value: Any, source: str) -> PoolConfig:
        """Checks and reads what `to_json` wrote. Raises ValueError naming the source and what is wrong."""
        if not isinstance(value, dict) or value.get("format") != "kindgene-pool":
            raise ValueError(f"{source} is not a pool's config.json (its 'format' is not 'kindgene-pool')")
        version = _take(value, "format_version", int, source)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{source}: this pool has format version {version}, this kindgene ({__version__}) reads "
                f"{FORMAT_VERSION}; install the kindgene that wrote it, or a newer one"
            )
        ranks = _read_ranks(_take(value, "ranks", dict, source), f"{source}: ranks")
        if not ranks:
            raise ValueError(f"{source}: ranks names no target")
        tables = _take(value, "label_tables", list, source)
        if not all(isinstance(table, str) for table in tables) or len(set(tables)) < len(tables):
            raise ValueError(f"{source}: label_tables must be a list of different texts, found {_short(tables)}")
        backbone, weights = (_take(value, key, str, source) for key in ("backbone", "weights"))
        if not re.fullmatch(r"[\w.]+", backbone):
            raise ValueError(f"{source}: backbone must be the name of a class, found {_short(backbone)}")
        if weights not in ("raw", "ema"):
            raise ValueError(f"{source}: weights must be 'raw' or 'ema', found {_short(weights)}")
        return cls(
            backbone=backbone,
            backbone_config=_take(value, "backbone_config", dict, source),
            ranks=ranks,
            label_tables=tuple(tables),
            label_argument=_take(value, "label_argument", str, source),
            learngene_id=_take_digest(value, "learngene_id", source),
            learngene_sha256=_take_digest(value, "learngene_sha256", source),
            weights=weights,
            classes=_read_classes(_take(value, "classes", dict, source), ranks, source),
            generation=_take(value, "generation", int, source),
            provenance=_take(value, "provenance", dict, source),
        )

    def tailor_ranks_of(self, name: str) -> Ranks:
        """Target -> rank of each part of a class's tailor."""
        ranks = self.classes[name].tailor_ranks
        if isinstance(ranks, int):
            return {target: (ranks,) * len(parts) for target, parts in self.ranks.items()}
        return ranks

    def members(self, file: str) -> tuple[str, ...]:
        """The classes that a tailor's file serves, in the order of its label rows."""
        rows = {entry.row: name for name, entry in self.classes.items() if entry.file == file}
        return tuple(rows[row] for row in sorted(rows))

    def with_classes(self, classes: Mapping[str, ClassEntry]) -> PoolConfig:
        """The next generation, with these classes."""
        return replace(self, classes=dict(classes), generation=self.generation + 1)


def compact_ranks(ranks: Ranks) -> int | Ranks:
    """One int where all ranks are equal, else the ranks."""
    values = {rank for parts in ranks.values() for rank in parts}
    return values.pop() if len(values) == 1 else dict(ranks)


def _read_classes(value: Mapping[str, Any], ranks: Ranks, source: str) -> dict[str, ClassEntry]:
    if value:
        try:
            check_class_names(tuple(value))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    classes = {name: _read_entry(entry, ranks, f"{source}: class {name!r}") for name, entry in value.items()}
    files: dict[str, list[ClassEntry]] = {}
    for entry in classes.values():
        files.setdefault(entry.file, []).append(entry)
    for file, entries in files.items():
        if sorted(entry.row for entry in entries) != list(range(len(entries))):
            raise ValueError(f"{source}: the classes of {file} do not have the rows 0 to {len(entries) - 1}")
        if any((e.sha256, e.tailor_ranks) != (entries[0].sha256, entries[0].tailor_ranks) for e in entries):
            raise ValueError(f"{source}: the classes of {file} differ in its sha256 or tailor_ranks")
    return classes


def _read_entry(value: Any, ranks: Ranks, where: str) -> ClassEntry:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, found {_short(value)}")
    file = _take(value, "file", str, where)
    if not TAILOR_FILE.fullmatch(file):
        raise ValueError(f"{where}: {_short(file)} is not the path of a tailor's file inside the pool")
    tailor_ranks: int | Ranks = _take(value, "tailor_ranks", (int, dict), where)
    if isinstance(tailor_ranks, dict):
        tailor_ranks = _read_ranks(tailor_ranks, f"{where}: tailor_ranks")
        if {t: len(parts) for t, parts in tailor_ranks.items()} != {t: len(parts) for t, parts in ranks.items()}:
            raise ValueError(f"{where}: tailor_ranks does not have the targets and parts of ranks")
    elif tailor_ranks < 1:
        raise ValueError(f"{where}: tailor_ranks must be at least 1, found {tailor_ranks}")
    digest = _take_digest(value, "sha256", where)
    return ClassEntry(file, digest, tailor_ranks, _take(value, "row", int, where))


def _read_ranks(value: Mapping[str, Any], where: str) -> Ranks:
    for target, parts in value.items():
        whole = isinstance(parts, list) and all(type(rank) is int and rank >= 1 for rank in parts)
        if not whole or not parts:
            raise ValueError(f"{where}: {target} must list a rank of at least 1 for each part, found {_short(parts)}")
    return {target: tuple(parts) for target, parts in value.items()}


def _take_digest(value: Mapping[str, Any], key: str, where: str) -> str:
    digest: str = _take(value, key, str, where)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"{where}: {key} must be 64 hex digits, found {_short(digest)}")
    return digest


def _take(value: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if key not in value:
        raise ValueError(f"{where}: {key} is missing")
    found = value[key]
    if isinstance(found, bool) or not isinstance(found, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_WORDS[one] for one in kinds)
        raise ValueError(f"{where}: {key} must be {wanted}, found {_short(found)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_WORDS: dict[type, str] = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}
