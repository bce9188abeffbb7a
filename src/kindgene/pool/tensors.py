"""Tensors of a pool as bytes: deterministic safetensors, checked against a hash and against expected shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kindgene.core.pieces import State

_METADATA = "kindgene"  # one entry: safetensors writes several in an order that differs from run to run


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file's content: the same bytes for the same tensors, always."""
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return safetensors.torch.save(plain, {_METADATA: json.dumps(dict(metadata), sort_keys=True)})


def read_checked(path: Path, sha256: str) -> tuple[State, dict[str, str]]:
    """Tensors and metadata of a file, read once, after its hash was compared. ValueError naming the file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: the pool is incomplete; copy it again") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}; copy the pool again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the file this pool was written with (sha256 {found[:16]}, expected {sha256[:16]}): "
            "truncated, damaged or foreign; copy it again"
        )
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header.get("__metadata__", {}).get(_METADATA, "{}"))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
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
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{where}: {key} has values that are not finite")


def state_id(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted (key, dtype, shape, bytes): what a learngene is known by."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
