"""One tailor as tensors: what a file in ``pool/tailors`` holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kindgene.core.pieces import State
from kindgene.files import in_threads, sync_folder, write_pieces
from kindgene.pool.classes import ClassEntry, Ranks, compact_ranks
from kindgene.pool.config import PoolConfig
from kindgene.pool.names import tailor_file
from kindgene.pool.tensors import check_finite, check_tensors, encode, parse, sha256_of


@dataclass(frozen=True, eq=False)
class Tailor:
    """The classes it serves, its components (``<target>.u|s|v``) and its label rows (``<table>`` -> [classes, D])."""

    classes: tuple[str, ...]
    components: State
    rows: State

    def row_of(self, name: str) -> State:
        """The label row of one of its classes, by table."""
        index = self.classes.index(name)
        return {table: rows[index] for table, rows in self.rows.items()}

    def without(self, names: Collection[str]) -> Tailor:
        """The same tailor for its other classes."""
        return self.only([name for name in self.classes if name not in names])

    def only(self, names: Collection[str]) -> Tailor:
        """The same tailor for those of its classes that are among `names`."""
        kept = [index for index, name in enumerate(self.classes) if name in names]
        return Tailor(
            tuple(self.classes[index] for index in kept),
            self.components,
            {table: rows[kept].clone() for table, rows in self.rows.items()},
        )

    def to(self, dtype: torch.dtype) -> Tailor:
        """The same tailor in another floating-point dtype."""
        components, rows = ({key: value.to(dtype) for key, value in s.items()} for s in (self.components, self.rows))
        return Tailor(self.classes, components, rows)

    def to_bytes(self, learngene_id: str) -> bytes:
        """The file's content; its metadata says whose it is, so that no two tailors have the same content."""
        return b"".join(self.pieces(learngene_id))

    def pieces(self, learngene_id: str) -> list[memoryview]:
        """`to_bytes` in pieces: the tensors' own memory."""
        return encode({**self.components, **self.rows}, _metadata(self.classes, learngene_id))

    def entries(self, ranks: Ranks, file: str = "", digest: str = "") -> dict[str, ClassEntry]:
        """What config.json says about its classes."""
        compact = compact_ranks(ranks)
        return {name: ClassEntry(file, digest, compact, row) for row, name in enumerate(self.classes)}


def tailors_by_class(tailors: Iterable[Tailor]) -> dict[str, Tailor]:
    """Class name -> its tailor."""
    return {name: tailor for tailor in tailors for name in tailor.classes}


def write_tailors(folder: Path, tailors: Sequence[tuple[Tailor, Ranks]], learngene_id: str) -> dict[str, ClassEntry]:
    """Writes tailors' files (under names that no other content has) and returns their classes' entries.

    All names, those of new folders too, have reached the disk when it returns: config.json may refer to them.
    """

    def write(one: tuple[Tailor, Ranks]) -> dict[str, ClassEntry]:
        tailor, ranks = one
        pieces = tailor.pieces(learngene_id)
        digest = sha256_of(pieces)
        file = tailor_file(tailor.classes, digest)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pieces(path, pieces)
        return tailor.entries(ranks, file, digest)

    entries = {name: entry for written in in_threads(write, tailors) for name, entry in written.items()}
    files = [folder / entry.file for entry in entries.values()]
    in_threads(sync_folder, sorted({path.parent for path in files} | {path.parent.parent for path in files}))
    return entries


def as_tailor(path: Path, data: Tensor, config: PoolConfig, file: str, learngene: Mapping[str, Tensor]) -> Tailor:
    """The tailor that is the content of a file. Raises ValueError naming what was expected and what was found.

    path: what is named; data: the content [bytes, uint8], of which the tensors are views; file: its name in the config.
    """
    members = config.members(file)
    tensors, metadata = parse(path, data)
    found = str(metadata.get("learngene_id"))
    if found != config.learngene_id:
        raise ValueError(
            f"{path} is a tailor of another learngene ({found[:16]}; this pool has {config.learngene_id[:16]})"
        )
    if metadata != _metadata(members, config.learngene_id):
        raise ValueError(f"{path} is not the tailor of {', '.join(map(repr, members))}, as config.json says")
    shapes = _shapes(config.tailor_ranks_of(members[0]), learngene)
    rows = {t: (len(members), learngene[f"{t}.null_row"].shape[0]) for t in config.label_tables}
    check_tensors(path, tensors, {**shapes, **rows})
    check_finite(path, tensors)
    return Tailor(members, {key: tensors[key] for key in shapes}, {table: tensors[table] for table in rows})


def _metadata(classes: Sequence[str], learngene_id: str) -> dict[str, str]:
    names = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
    return {"format": "kindgene-tailor", "learngene_id": learngene_id, "classes_sha256": names}


def _shapes(tailor_ranks: Ranks, learngene: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a tailor's components, from the learngene it belongs to."""
    shapes: dict[str, tuple[int, ...]] = {}
    for target, ranks in tailor_ranks.items():
        total = sum(ranks)
        shapes[f"{target}.u"] = (total, learngene[f"{target}.u"].shape[1])
        shapes[f"{target}.s"] = (total,)
        shapes[f"{target}.v"] = (total, learngene[f"{target}.v"].shape[1])
    return shapes
