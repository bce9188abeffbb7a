"""The measured error of an export against the model that it was made from: nothing is written that fails it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
)
"""Most that an exact export may differ, relative to the output's norm: the formula is right, rounding apart."""

MOST_LABELS = 8
LAST_TIMESTEP = 999

Model = Callable[[Tensor, Tensor, Tensor], Any]
Inputs = tuple[Tensor, Tensor, Tensor]


def inputs_for(config: Mapping[str, Any], labels: Tensor, dtype: torch.dtype) -> Inputs:
    """Images, timesteps from first to last and these labels, the same ones every time (float64 inside)."""
    size = config["input_size"] if "input_size" in config else config["sample_size"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(labels), config["in_channels"], size, size, generator=generator, dtype=torch.float64)
    t = torch.linspace(0, LAST_TIMESTEP, len(labels)).long()
    return x.to(dtype), t, labels


def some_labels(num_classes: int, null: int | None) -> Tensor:
    """Labels to check with: the first few classes (one several times where there are few), and null."""
    labels = [label % num_classes for label in range(MOST_LABELS)]
    return torch.tensor(labels if null is None else [*labels[:-2], null, null])


@torch.no_grad()
def output_of(model: Model, inputs: Inputs) -> Tensor:
    """A model's output as a plain tensor; diffusers' models wrap it."""
    output = model(*inputs)
    return output if isinstance(output, Tensor) else output.sample


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in float64; infinite for another shape and for what is not finite."""
    if found.shape != expected.shape:
        return math.inf
    difference = float((found.double() - expected.double()).norm())
    size = float(expected.double().norm())
    if not math.isfinite(difference):
        return math.inf
    return difference / size if size else (0.0 if difference == 0 else math.inf)


def checked_error(what: str, found: Tensor, expected: Tensor) -> float:
    """The relative error. Raises ValueError where it is more than rounding in the coarser of the two dtypes."""
    error = relative_error(found, expected)
    tolerance = max(TOLERANCE[found.dtype], TOLERANCE[expected.dtype])
    if not error <= tolerance:
        raise ValueError(
            f"{what} differs from the model it was made from by {error:.2g} (relative), more than the {tolerance:g} "
            "that rounding explains; nothing was written"
        )
    return error
