"""What onnxruntime lacks in float64, said in what it has: the same function, for exports that prove the formula.

It has no convolution in float64; its float32 sine and cosine, in which time features are defined, are not torch's in
the last bit; its GELU has constants of float32, and so has what torch's exporter makes of a number in a program. None
of it matters in float32, where models are exported as they are.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch.export import ExportedProgram

from kindgene.models.blocks import TimestepEmbedder, time_features

NUM_TIMESTEPS = 1000


class PatchProduct(nn.Module):
    """A convolution of patches side by side, as the matrix product that it is: [B, C, H, W] -> [B, O, H/p, W/p]."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.size = convolution.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        (high, wide), (rows, columns) = self.size, (x.shape[2] // self.size[0], x.shape[3] // self.size[1])
        patches = x.unflatten(3, (columns, wide)).unflatten(2, (rows, high))  # [B, C, rows, high, columns, wide]
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [B, rows, columns, C high wide]
        y = nn.functional.linear(patches, self.weight.flatten(1), self.bias)
        return y.permute(0, 3, 1, 2)


class TimeTable(nn.Module):
    """Time features of the timesteps 0 .. 999, looked up: [B] -> [B, F] in float32."""

    features: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, t_B: Tensor) -> Tensor:
        return self.features[t_B]


class TabledEmbedder(nn.Module):
    """Our DiT's `TimestepEmbedder` over a table."""

    def __init__(self, embedder: TimestepEmbedder) -> None:
        super().__init__()
        self.table = TimeTable(time_features(torch.arange(NUM_TIMESTEPS), embedder.frequencies))
        self.mlp = embedder.mlp

    def forward(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        return cast(Tensor, self.mlp(self.table(t_B).to(dtype)))


def for_float64(model: nn.Module) -> None:
    """Replaces, in place, what onnxruntime cannot do. Raises ValueError for a convolution that is more than patches."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            plain = (module.padding, module.dilation, module.groups) == ((0, 0), (1, 1), 1)
            if module.kernel_size != module.stride or not plain:
                raise ValueError(f"{name} is a convolution, which onnxruntime does not have in float64: use float32")
            model.set_submodule(name, PatchProduct(module))
        elif isinstance(module, TimestepEmbedder):
            model.set_submodule(name, TabledEmbedder(module))
        elif isinstance(module, Timesteps):
            model.set_submodule(name, TimeTable(module(torch.arange(NUM_TIMESTEPS))))


def with_exact_gelu(program: ExportedProgram) -> ExportedProgram:
    """The program with its GELUs written out."""
    gelu: Any = torch.ops.aten.gelu.default
    decomposed: ExportedProgram = program.run_decompositions({gelu: _gelu})
    return decomposed


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    assert approximate == "tanh", "no backbone of ours has another"
    inner = _times(x + _times(x * x * x, 0.044715), math.sqrt(2 / math.pi))
    return 0.5 * x * (1 + torch.tanh(inner))


def _times(x: Tensor, constant: float) -> Tensor:
    """x times a constant in two parts, each of which is a float32."""
    high = float(np.float32(constant))
    return x * high + x * (constant - high)
