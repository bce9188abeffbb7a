"""One tailor as tensors: what a file in ``pool/tailors`` holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kindgene.core.pieces import State
from kindgene.files import write_bytes
from kindgene.pool.config import ClassEntry, PoolConfig, Ranks, compact_ranks, tailor_file


@dataclass(frozen=True)
class Tailor:
    """The classes it serves, its components (``<target>.u|s|v``) and its label rows (``<table>`` -> [classes, D])."""

    classes: tuple[str, ...]
    components: State
    rows: State

    def row_of(self, name: str) -> State:
        """The label row of one of its classes, by table."""
        index = self.classes.index(name)
        return {table: rows[index] for table, rows in self.rows.items()}

    def without(self, names: Sequence[str]) -> Tailor:
        """The same tailor for its other classes."""
        kept = [index for index, name in enumerate(self.classes) if name not in names]
        return Tailor(
            tuple(self.classes[index] for index in kept),
            self.components,
            {table: rows[kept].clone() for table, rows in self.rows.items()},
        )

    def to_bytes(self, learngene_id: str) -> bytes:
        """The file's content; its metadata names the learngene it belongs to."""
        tensors = {key: value.detach().contiguous() for key, value in {**self.components, **self.rows}.items()}
        return safetensors.torch.save(tensors, {"format": "kindgene-tailor", "learngene_id": learngene_id})


def write_tailor(folder: Path, tailor: Tailor, learngene_id: str, ranks: Ranks) -> dict[str, ClassEntry]:
    """Writes a tailor's file (under a name that no other content has) and returns its classes' entries."""
    data = tailor.to_bytes(learngene_id)
    digest = hashlib.sha256(data).hexdigest()
    file = tailor_file(tailor.classes, digest)
    path = folder / file
    if not (path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    return {
        name: ClassEntry(file=file, sha256=digest, tailor_ranks=compact_ranks(ranks), row=row)
        for row, name in enumerate(tailor.classes)
    }


def read_tailor(folder: Path, config: PoolConfig, file: str, learngene: Mapping[str, Tensor]) -> Tailor:
    """Reads and checks a tailor's file. Raises ValueError naming the file, what was expected and what was found."""
    path = folder / file
    members = sorted(((entry.row, name) for name, entry in config.classes.items() if entry.file == file))
    entry = config.classes[members[0][1]]
    tensors, metadata = read_checked(path, entry.sha256)
    if metadata.get("learngene_id") != config.learngene_id:
        found = str(metadata.get("learngene_id"))[:16]
        raise ValueError(f"{path} is a tailor of another learngene ({found}; this pool has {config.learngene_id[:16]})")
    expected = piece_shapes(config.ranks, config.tailor_ranks_of(members[0][1]), config.label_tables, learngene, members[-1][0] + 1)
    check_pieces(path, tensors, expected)
    rows = {table: tensors.pop(table) for table in config.label_tables}
    return Tailor(tuple(name for _, name in members), tensors, rows)


def piece_shapes(
    ranks: Ranks, tailor_ranks: Ranks, label_tables: Sequence[str], learngene: Mapping[str, Tensor], rows: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a tailor, from the learngene it belongs to."""
    shapes: dict[str, tuple[int, ...]] = {}
    for target in ranks:
        total = sum(tailor_ranks[target])
        shapes[f"{target}.u"] = (total, learngene[f"{target}.u"].shape[1])
        shapes[f"{target}.s"] = (total,)
        shapes[f"{target}.v"] = (total, learngene[f"{target}.v"].shape[1])
    return {**shapes, **{table: (rows, learngene[f"{table}.null_row"].shape[0]) for table in label_tables}}


def check_pieces(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError naming the file and the first tensor that is missing, foreign, misshapen or not finite."""
    for key, shape in expected.items():
        if key not in tensors:
            raise ValueError(f"{path}: {key} is missing")
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{path}: {key} has shape {list(tensors[key].shape)}, expected {list(shape)}")
        if not torch.isfinite(tensors[key]).all():
            raise ValueError(f"{path}: {key} has values that are not finite")
    foreign = sorted(tensors.keys() - expected.keys())
    if foreign:
        raise ValueError(f"{path}: unexpected {', '.join(foreign[:3])}")


def read_checked(path: Path, sha256: str) -> tuple[State, dict[str, str]]:
    """Tensors and metadata of a safetensors file, read once, after its hash was compared."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: the pool is incomplete; copy it again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the file this pool was written with (sha256 {found[:16]}, expected {sha256[:16]}): "
            "truncated, damaged or foreign; copy it again"
        )
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, dict(header.get("__metadata__", {}))
