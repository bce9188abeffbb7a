"""Weights on disk, read one tensor at a time: safetensors files, and .pt files that hold tensors alone."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from kindgene.files import read_json, read_shapes

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
NESTED = ("ema", "model", "state_dict")
"""Where a training script's checkpoint keeps its weights; the first of these that is there is taken."""

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"


class Weights(Protocol):
    """Named tensors, not yet in memory."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, without reading any."""

    def read(self, key: str) -> Tensor:
        """One tensor, on the CPU."""


class SafetensorsWeights:
    """The tensors of safetensors files. Raises ValueError for a file that is missing or damaged."""

    def __init__(self, paths: list[Path]) -> None:
        found = {path: read_shapes(path) for path in paths}
        self._file_of = {key: path for path, shapes in found.items() for key in shapes}
        self._shapes = {key: shape for shapes in found.values() for key, shape in shapes.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    def read(self, key: str) -> Tensor:
        with safetensors.safe_open(self._file_of[key], framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor


class LoadedWeights:
    """Tensors that are there already (a .pt file, mapped from disk)."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(value.shape) for key, value in self._state.items()}

    def read(self, key: str) -> Tensor:
        return self._state[key]


def open_weights(path: Path) -> tuple[Weights, str]:
    """A checkpoint file's weights, and where in it they were ("" for a plain state dict)."""
    if path.suffix == ".safetensors":
        return SafetensorsWeights([path]), ""
    if path.suffix not in PICKLED:
        raise ValueError(f"{path}: a checkpoint is a .safetensors or one of {', '.join(PICKLED)}")
    return _open_pickled(path)


def open_folder(folder: Path) -> Weights:
    """The weights of a diffusers model's folder: one safetensors file, or several and an index."""
    if (folder / INDEX_FILE).is_file():
        index = read_json(folder / INDEX_FILE)
        names = sorted(set(index["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError(f"{folder / INDEX_FILE} names files outside its folder")
        return SafetensorsWeights([folder / name for name in names])
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS_FILE}; only safetensors are read from a folder")
    return SafetensorsWeights([folder / WEIGHTS_FILE])


def _open_pickled(path: Path) -> tuple[Weights, str]:
    """A .pt file through ``torch.load(weights_only=True)``, which builds tensors and runs no code."""
    value = _load_tensors(path)
    for place in NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(place), Mapping):
            return LoadedWeights(_only_tensors(value[place], path)), place
    return LoadedWeights(_only_tensors(value, path)), ""


def _load_tensors(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format of before 2020 cannot be mapped
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors (arguments, an optimizer?), and nothing else is read from a pickle: save "
            "its state dict alone, as safetensors"
        ) from error
    except (RuntimeError, EOFError, UnicodeDecodeError, KeyError, IndexError) as error:  # so torch's unpickler says it
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: is not a whole checkpoint (truncated or damaged?): {reason}") from error


def _only_tensors(state: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a state dict: names and tensors")
    return dict(state)
