"""Controls in pre-training: is it the classes, or just thin matrices; and what would as many plain numbers do?

Both are fresh plain DiTs, to be trained as the decomposable model is, on the same data for as many steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from kindgene.models.dit import DiT
from kindgene.transfer.new_classes import TARGETS, Targets, target_layers
from kindgene.transfer.transfer import drawing


def low_rank_control(
    dense: DiT, rank: int, *, targets: Targets = TARGETS, generator: torch.Generator | None = None
) -> DiT:
    """A fresh DiT of the sizes of `dense` whose targets are thin pairs of `rank`, without classes.

    At rank N_G + N_T it computes with as many components a sample as KIND, all of them for every class. A fused matrix
    has a pair of its own for each part, as in KIND. Raises ValueError for a rank that a target cannot have.
    """
    form = {name: [rank] * parts for name, (_, parts) in target_layers(dense, targets).items()}
    with drawing(generator):
        model: DiT = DiT(**{**_settings(dense), "low_rank": form})
    return model


def dense_control(dense: DiT, parameters: int, *, generator: torch.Generator | None = None) -> DiT:
    """A fresh dense DiT like `dense` but of the width whose stored parameters come nearest to `parameters`.

    Depth and heads stay. Raises ValueError where even the narrowest has more.
    """
    width = width_for(dense, parameters)
    with drawing(generator):
        model: DiT = DiT(**{**_settings(dense), "hidden_size": width, "low_rank": None})
    return model


def width_for(dense: DiT, parameters: int) -> int:
    """The width, a multiple of 4 and of the heads, at which `dense` would store nearest to `parameters` numbers."""
    step = math.lcm(4, dense.config.num_heads)
    if stored_at(dense, step) > parameters:
        least = stored_at(dense, step)
        raise ValueError(f"a dense DiT of this depth stores at least {least} parameters, more than {parameters}")
    low, high = 1, 2
    while stored_at(dense, high * step) <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if stored_at(dense, middle * step) <= parameters else (low, middle)
    below, above = stored_at(dense, low * step), stored_at(dense, high * step)
    return step * (low if parameters - below <= above - parameters else high)


def stored_at(dense: DiT, width: int) -> int:
    """How many parameters a dense DiT like `dense` has at a width, the fixed position table included."""
    with torch.device("meta"):
        model = DiT(**{**_settings(dense), "hidden_size": width, "low_rank": None})
    return sum(value.numel() for value in model.parameters())


def _settings(dense: DiT) -> dict[str, Any]:
    return {key: value for key, value in dense.config.items() if not key.startswith("_")}
