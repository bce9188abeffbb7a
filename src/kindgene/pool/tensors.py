"""Tensors of a pool as bytes: deterministic safetensors, checked against a hash and against expected shapes."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kindgene.core.pieces import State
from kindgene.pool.tensor_bytes import from_bytes, memory, to_bytes

_METADATA = "kindgene"  # the one entry of a file's own metadata: ours, as JSON


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[memoryview]:
    """A safetensors file's content, in pieces: the same bytes for the same tensors, always."""
    return to_bytes(tensors, {_METADATA: json.dumps(dict(metadata), sort_keys=True)})


def sha256_of(pieces: Iterable[memoryview]) -> str:
    """The SHA-256 of pieces, one after the other, as 64 hex digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def read_bytes(path: Path, sha256: str) -> Tensor:
    """A file's content [bytes, uint8], read once, after its hash was compared. ValueError naming the file.

    Nearly all of it runs beside other threads; `parse` does not.
    """
    try:
        with path.open("rb", buffering=0) as file:
            data = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8)
            view, read = memory(data), 0
            while read < len(view) and (more := file.readinto(view[read:])):
                read += more
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: the pool is incomplete; copy it again") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}; copy the pool again") from error
    found = sha256_of([view[:read]])
    if found != sha256:
        raise ValueError(
            f"{path} is not the file this pool was written with (sha256 {found[:16]}, expected {sha256[:16]}): "
            "truncated, damaged or foreign; copy it again"
        )
    return data


def parse(path: Path, data: Tensor) -> tuple[State, dict[str, str]]:
    """Tensors (views of `data`, what `read_bytes` read of the path) and metadata. ValueError naming the file."""
    try:
        tensors, told = from_bytes(data)
        metadata = json.loads(told.get(_METADATA, "{}"))
    except ValueError as error:
        raise ValueError(f"{path} is not a safetensors file that kindgene wrote: {error}") from error
    return tensors, metadata if isinstance(metadata, dict) else {}


def check_tensors(where: object, found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError naming the place and the first tensor that is missing, foreign or misshapen."""
    for key, shape in expected.items():
        if key not in found:
            raise ValueError(f"{where}: {key} is missing")
        if tuple(found[key].shape) != shape:
            raise ValueError(f"{where}: {key} has shape {list(found[key].shape)}, expected {list(shape)}")
    foreign = sorted(found.keys() - expected.keys())
    if foreign:
        raise ValueError(f"{where}: unexpected {', '.join(foreign[:3])}")


def check_finite(where: object, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError naming the place and the first tensor with NaN or infinity."""
    for key, value in state.items():
        # A sum that is finite has finite terms, and takes a thirtieth of the time; one that is not may be too large.
        if value.is_floating_point() and not math.isfinite(value.sum()) and not torch.isfinite(value).all():
            raise ValueError(f"{where}: {key} has values that are not finite")


def state_id(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted (key, dtype, shape, bytes): what a learngene is known by."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu()
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(memory(tensor))
    return digest.hexdigest()
