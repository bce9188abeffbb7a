"""Clipping as torch does it, norms that count everything once, and a loss scale that finds its place."""

import math

import pytest
import torch
from torch import nn

from kindgene.training.gradients import FIRST_SCALE, PATIENCE, LossScale, clip_factor, scale_, total_norms
from kindgene.training.placement import Placement
from kindgene.training.processes import ALONE


def test_the_norm_is_that_of_everything_and_clipping_is_torchs() -> None:
    torch.manual_seed(0)
    shared = [torch.randn(3, 4, dtype=torch.float64), torch.randn(7, dtype=torch.float64)]
    rows = {
        "bank.tailors.rows": (torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 2, 3])),
        "bank.labels.rows": (torch.randn(2, 6, dtype=torch.float64), torch.tensor([1, 2])),
    }
    everything = torch.cat([value.flatten() for value in (*shared, *(gradient for gradient, _ in rows.values()))])
    for placement in (None, Placement.of(range(4), [50, 1, 1, 1], 2)):  # the first is held by everyone
        learngene, tailors = total_norms(shared, rows, ALONE, placement)
        assert math.hypot(learngene, tailors) == pytest.approx(float(everything.norm()), rel=1e-12)
    parameters = [nn.Parameter(torch.zeros_like(value)) for value in shared]
    for parameter, value in zip(parameters, shared, strict=True):
        parameter.grad = value.clone()
    norm = float(nn.utils.clip_grad_norm_(parameters, 0.3))
    scale_(shared, clip_factor(norm, 0.3))
    for parameter, value in zip(parameters, shared, strict=True):
        torch.testing.assert_close(parameter.grad, value)
    assert clip_factor(0.1, 0.3) == clip_factor(5.0, None) == 1.0
    assert total_norms([], {}, ALONE, None) == (0.0, 0.0)


def test_the_loss_scale_halves_on_overflow_and_doubles_after_patience() -> None:
    scale = LossScale(dynamic=True)
    assert scale.scale == FIRST_SCALE
    scale.update(finite=False)
    assert scale.scale == FIRST_SCALE / 2
    for _ in range(PATIENCE - 1):
        scale.update(finite=True)
    assert scale.scale == FIRST_SCALE / 2
    scale.update(finite=True)
    assert (scale.scale, scale.good) == (FIRST_SCALE, 0)
    while not scale.exhausted:
        scale.update(finite=False)
    assert scale.scale == 1.0
    fixed = LossScale(dynamic=False)
    fixed.update(finite=False)
    assert fixed.scale == 1.0
    assert fixed.exhausted
