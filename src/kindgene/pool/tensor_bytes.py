"""Tensors as the bytes of a safetensors file, and back, without a copy of them.

A file is eight bytes with the header's length, the header (JSON: for each tensor its dtype, shape and place; padded
with spaces to whole eight bytes) and the tensors' memory, one after the other: those of the widest dtype first, then by
name. `to_bytes` gives what the safetensors library would write, bit for bit; where that writes several metadata in an
order that differs from run to run, ours are sorted. `from_bytes` reads what anyone wrote.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_LENGTH = 8  # bytes of the header's length, and what the header is padded to
_MOST = 100_000_000  # bytes of a header: the format's own limit

# In the order in which the library puts them into a file.
_DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PLACES = {dtype: place for place, dtype in enumerate(_DTYPES.values())}


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> list[memoryview]:
    """The file's content in pieces: the header, then each tensor's own memory (a copy where it is not contiguous).

    Tensors may have any layout and device, and share memory. Raises ValueError for a dtype that the format lacks.
    """
    assert sys.byteorder == "little", "the format is little-endian"
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{key}: a safetensors file cannot hold {tensor.dtype}")
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    pieces, place = [], 0
    for key in sorted(tensors, key=lambda key: (_PLACES[tensors[key].dtype], key)):
        tensor = tensors[key].detach().cpu().resolve_conj().resolve_neg()
        pieces.append(memory(tensor))
        end = place + pieces[-1].nbytes
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    return [memoryview(len(text).to_bytes(_LENGTH, "little") + text), *pieces]


def from_bytes(data: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, as views of the file's content `data` [bytes, uint8], and metadata ({} where there is none).

    Raises ValueError for what is not a whole safetensors file.
    """
    length = int.from_bytes(memory(data[:_LENGTH]), "little")
    if len(data) < _LENGTH or length > min(len(data) - _LENGTH, _MOST):
        raise ValueError("its header is cut off")
    header = json.loads(bytes(memory(data[_LENGTH : _LENGTH + length])))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    metadata = header.pop("__metadata__", None) or {}
    content, place, tensors = data[_LENGTH + length :], 0, {}
    total = len(content)
    for begin, end, key in sorted((*_place(key, value), key) for key, value in header.items()):
        shape, dtype = header[key]["shape"], _DTYPES.get(header[key]["dtype"])
        if dtype is None or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{key} has no dtype or shape that is known")
        if begin != place or end != begin + math.prod(shape) * dtype.itemsize or end > total:
            raise ValueError(f"{key} does not lie where its shape says")
        piece = content[begin:end]
        if piece.data_ptr() % dtype.itemsize:  # only in a file that pads its header otherwise
            piece = piece.clone()
        tensors[key], place = piece.view(dtype).view(shape), end
    if place != total:
        raise ValueError("it is longer than its tensors")
    return tensors, metadata


def memory(tensor: Tensor) -> memoryview:
    """A CPU tensor's numbers as bytes, in their order: its own memory where that is contiguous."""
    view: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return view


def _place(key: str, value: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, in bytes of what follows the header."""
    try:
        begin, end = value["data_offsets"]
        if type(begin) is type(end) is int and {"dtype", "shape"} <= value.keys():
            return begin, end
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{key} has no place in it")
