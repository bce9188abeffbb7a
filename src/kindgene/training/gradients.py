"""The gradients of a step: summed over processes, measured, clipped, scaled.

Shapes: R rows gathered for a step.

The norm is that of all gradients of the step together, each counted once: what is shared is the same on every process
(or sharded among them), rows that everyone holds too; other rows are on one process only, whose squares are summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from kindgene.core.bank import GatheredRows
from kindgene.training.optimizer import gathered_tables
from kindgene.training.placement import EVERYONE, Placement
from kindgene.training.processes import Processes
from kindgene.training.spread import whole

GROWTH, PATIENCE, FIRST_SCALE = 2.0, 2000, 2.0**16
"""Dynamic loss scaling (Micikevicius et al., arXiv 1710.03740) with the constants of torch.amp.GradScaler."""


class LossScale:
    """What the loss is multiplied by before backward, so that fp16 gradients neither vanish nor overflow; 1: nothing.

    Ours, as torch's scaler knows optimizers' parameters alone and gathered rows are none.
    """

    def __init__(self, dynamic: bool) -> None:
        self.dynamic = dynamic
        self.scale, self.good = (FIRST_SCALE, 0) if dynamic else (1.0, 0)

    def update(self, finite: bool) -> None:
        """Halves the scale after an overflow, doubles it after enough steps without."""
        if not self.dynamic:
            return
        if not finite:
            self.scale, self.good = self.scale / GROWTH, 0
        elif self.good + 1 == PATIENCE:
            self.scale, self.good = self.scale * GROWTH, 0
        else:
            self.good += 1

    @property
    def exhausted(self) -> bool:
        """Whether what is not finite cannot be blamed on the scale any more."""
        return self.scale <= 1.0


def sum_rows(model: nn.Module, rows: GatheredRows | None, processes: Processes, placement: Placement | None) -> None:
    """Sums the gradients of the gathered rows over processes, in place: all of them, or those that everyone holds.

    They come from a loss that was multiplied by the number of processes, for the sake of what is shared.
    """
    if processes.size == 1:
        return
    for name, table in gathered_tables(model, rows).items():
        gradient = cast(Tensor, table.values.grad).div_(processes.size)
        common = _common(name, table.present, placement)
        if common is None:
            processes.sum_(gradient)
        elif len(common):
            part = gradient.index_select(0, common)
            processes.sum_(part)
            gradient.index_copy_(0, common, part)


def total_norms(
    shared: Iterable[Tensor],
    rows: Mapping[str, tuple[Tensor, Tensor]],
    processes: Processes,
    placement: Placement | None,
) -> tuple[float, float]:
    """Norms of the gradients of the shared parameters and of the rows, each counted once over all processes.

    `rows`: name -> (gradients [R, P], ids [R]) of the rows that were gathered.
    """
    own = common = torch.zeros((), dtype=processes.exact, device=processes.device)
    for name, (gradient, present) in rows.items():
        square_R = torch.linalg.vector_norm(gradient, dim=1).to(processes.exact).square()
        held = _common(name, present, placement)
        part = square_R.sum() if held is None else square_R[held].sum()
        common = common + part
        own = own + square_R.sum() - part
    if placement is not None:
        processes.sum_(own)
    found = list(shared)
    return float(whole(get_total_norm(found))) if found else 0.0, math.sqrt(float(common + own))


def scale_(gradients: Iterable[Tensor], factor: float) -> None:
    """Multiplies gradients in place."""
    if factor != 1.0:
        for gradient in gradients:
            gradient.mul_(factor)


def clip_factor(norm: float, largest: float | None) -> float:
    """What gradients of this norm are multiplied by so that it is at most `largest`, as torch's clipping does."""
    return 1.0 if largest is None else min(1.0, largest / (norm + 1e-6))


def _common(name: str, present: Tensor, placement: Placement | None) -> Tensor | None:
    """Positions of the rows that everyone holds; None where that is every row."""
    if placement is None:
        return None
    owner = placement.owner if name == "bank.tailors.rows" else placement.owner[placement.tailor_of]
    return (owner.to(present.device)[present] == EVERYONE).nonzero().flatten()
