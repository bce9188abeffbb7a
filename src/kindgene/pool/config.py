"""A pool's config.json: the one file that says what the pool is (DESIGN section 6). Values, checked when read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kindgene._version import __version__
from kindgene.pool.classes import (
    ClassEntry,
    ClassTable,
    Ranks,
    members,
    read_ranks,
    short,
    take,
    take_digest,
)

FORMAT_VERSION = 1


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
    classes: Mapping[str, ClassEntry]
    generation: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "kindgene-pool",
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
            "null_label": len(self.classes),
            **asdict(replace(self, classes={})),
            "classes": {name: dict(vars(entry)) for name, entry in self.classes.items()},
        }

    @classmethod
    def from_json(cls, value: Any, source: str) -> PoolConfig:
        """Checks and reads what `to_json` wrote, classes when they are asked for (`ClassTable`).

        Raises ValueError naming the source and what is wrong.
        """
        if not isinstance(value, dict) or value.get("format") != "kindgene-pool":
            raise ValueError(f"{source} is not a pool's config.json (its 'format' is not 'kindgene-pool')")
        version = take(value, "format_version", int, source)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{source}: this pool has format version {version}, this kindgene ({__version__}) reads "
                f"{FORMAT_VERSION}; install the kindgene that wrote it, or a newer one"
            )
        ranks = read_ranks(take(value, "ranks", dict, source), f"{source}: ranks")
        if not ranks:
            raise ValueError(f"{source}: ranks names no target")
        tables = take(value, "label_tables", list, source)
        if not all(isinstance(table, str) for table in tables) or len(set(tables)) < len(tables):
            raise ValueError(f"{source}: label_tables must be a list of different texts, found {short(tables)}")
        backbone, weights = (take(value, key, str, source) for key in ("backbone", "weights"))
        if not re.fullmatch(r"[\w.]+", backbone):
            raise ValueError(f"{source}: backbone must be the name of a class, found {short(backbone)}")
        if weights not in ("raw", "ema"):
            raise ValueError(f"{source}: weights must be 'raw' or 'ema', found {short(weights)}")
        return cls(
            backbone=backbone,
            backbone_config=take(value, "backbone_config", dict, source),
            ranks=ranks,
            label_tables=tuple(tables),
            label_argument=take(value, "label_argument", str, source),
            learngene_id=take_digest(value, "learngene_id", source),
            learngene_sha256=take_digest(value, "learngene_sha256", source),
            weights=weights,
            classes=ClassTable(take(value, "classes", dict, source), ranks, source),
            generation=take(value, "generation", int, source),
            provenance=take(value, "provenance", dict, source),
        )

    def tailor_ranks_of(self, name: str) -> Ranks:
        """Target -> rank of each part of a class's tailor."""
        ranks = self.classes[name].tailor_ranks
        if isinstance(ranks, int):
            return {target: (ranks,) * len(parts) for target, parts in self.ranks.items()}
        return ranks

    def members(self, file: str) -> tuple[str, ...]:
        """The classes that a tailor's file serves, in the order of its label rows."""
        return self.classes.members(file) if isinstance(self.classes, ClassTable) else members(self.classes, file)

    def with_classes(self, classes: Mapping[str, ClassEntry]) -> PoolConfig:
        """The next generation, with these classes."""
        return replace(self, classes=dict(classes), generation=self.generation + 1)
