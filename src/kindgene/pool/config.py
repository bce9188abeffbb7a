"""A pool's config.json: the one file that says what the pool is (DESIGN section 6). Values, checked when read.

Names of classes are user input: exact in here, never a path and never a tensor key.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from kindgene._version import __version__

FORMAT_VERSION = 1
LEARNGENE_FILE = "learngene.safetensors"
LONGEST_NAME = 200

Ranks = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ClassEntry:
    """Where a class lives: its tailor's file, the file's hash, the tailor's ranks and its label row in that file.

    `tailor_ranks` is one int where every part of every target has it, else target -> rank of each part.
    """

    file: str
    sha256: str
    tailor_ranks: int | Ranks
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Everything about a pool but the tensors."""

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
        version = value.get("format_version")
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"{source}: format_version must be a whole number from 1, found {version!r}")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{source}: this pool has format version {version}; this kindgene ({__version__}) reads up to "
                f"{FORMAT_VERSION}. Install a newer kindgene"
            )
        try:
            classes = {
                name: ClassEntry(
                    file=_inside(entry["file"]),
                    sha256=str(entry["sha256"]),
                    tailor_ranks=_read_ranks(entry["tailor_ranks"]),
                    row=int(entry["row"]),
                )
                for name, entry in value["classes"].items()
            }
            return cls(
                backbone=str(value["backbone"]),
                backbone_config=dict(value["backbone_config"]),
                ranks={name: tuple(ranks) for name, ranks in value["ranks"].items()},
                label_tables=tuple(value["label_tables"]),
                label_argument=str(value["label_argument"]),
                learngene_id=str(value["learngene_id"]),
                learngene_sha256=str(value["learngene_sha256"]),
                weights=str(value["weights"]),
                classes=classes,
                generation=int(value["generation"]),
                provenance=dict(value["provenance"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{source} is damaged or incomplete: {type(error).__name__} {error}") from error

    def tailor_ranks_of(self, name: str) -> Ranks:
        """Target -> rank of each part of a class's tailor."""
        ranks = self.classes[name].tailor_ranks
        if isinstance(ranks, int):
            return {target: (ranks,) * len(parts) for target, parts in self.ranks.items()}
        return ranks

    def with_classes(self, classes: Mapping[str, ClassEntry]) -> PoolConfig:
        """The next generation, with these classes."""
        return replace(self, classes=dict(classes), generation=self.generation + 1)


def check_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple. Raises ValueError for none, an empty or overlong one, duplicates, or control characters.

    Any other text is a name, ``../../x`` and ``CON`` too: names are never paths. Names that differ only in case or
    Unicode form are different names.
    """
    if isinstance(names, str):
        raise ValueError(f"class names must be a list of names, got the single string {names!r}")
    checked = tuple(names)
    if not checked:
        raise ValueError("no class was named; name at least one")
    for name in checked:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a class name must be a text that is not empty, got {name!r}")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"a class name has {len(name)} characters, at most {LONGEST_NAME} fit: {name[:40]!r}...")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise ValueError(f"class name {name!r} has a control character or half of a surrogate pair")
    repeated = sorted({name for name in checked if checked.count(name) > 1}) if len(set(checked)) < len(checked) else []
    if repeated:
        raise ValueError(f"classes named more than once: {', '.join(map(repr, repeated))}")
    return checked


def tailor_file(names: Sequence[str], digest: str) -> str:
    """Path of a tailor's file inside the pool: a readable slug of its first class, told apart by its content's hash."""
    ascii_name = unicodedata.normalize("NFKD", names[0]).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")[:40] or "class"
    return f"tailors/{digest[:2]}/{slug}-{digest[:16]}.safetensors"


def state_id(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted (key, dtype, shape, bytes): what a learngene is known by."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def compact_ranks(ranks: Ranks) -> int | Ranks:
    """One int where all ranks are equal, else the ranks."""
    values = {rank for parts in ranks.values() for rank in parts}
    return values.pop() if len(values) == 1 else dict(ranks)


def _read_ranks(value: Any) -> int | Ranks:
    if isinstance(value, int):
        return value
    return {name: tuple(ranks) for name, ranks in value.items()}


def _inside(file: Any) -> str:
    """A tailor's path as the config may name it: inside the pool, never anywhere else."""
    path = PurePosixPath(str(file))
    if path.is_absolute() or ".." in path.parts or path.parts[:1] != ("tailors",) or path.suffix != ".safetensors":
        raise TypeError(f"{file!r} is not a tailor's file inside the pool")
    return str(path)
