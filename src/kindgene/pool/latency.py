"""How long a forward takes on a device: measured, never guessed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kindgene.core.decomposable import Decomposable
from kindgene.pool.budget import Budget, ImpossibleBudgetError
from kindgene.pool.plan import Plan

WARMUP, REPEATS = 3, 15


def measure_latency(model: nn.Module, inputs: Mapping[str, Any], device: str | torch.device) -> float:
    """Median milliseconds of one forward of `inputs` on `device`, which the model is moved to; no guidance."""
    device = torch.device(device)
    model = model.to(device).eval()
    placed = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    times = []
    with torch.inference_mode():
        for _ in range(WARMUP + REPEATS):
            wait(device)
            started = time.perf_counter()
            forward(model, placed)
            wait(device)
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times[WARMUP:])


def forward(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """One forward, the gate opened by hand for class 0 where the module takes no labels."""
    if isinstance(model, Decomposable) and not model.label_argument:
        samples = next(iter(inputs.values())).shape[0]
        with model.gate(torch.zeros(samples, dtype=torch.long, device=model.bank.tailors.rows.device)):
            model(**inputs)
    else:
        model(**inputs)


def wait(device: torch.device) -> None:
    """Until all that was asked of an accelerator is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def fit_latency(
    within: Callable[[Budget], Plan], latency: Callable[[Plan], float], budget: Budget
) -> tuple[Plan, float]:
    """The best plan whose latency, measured, is within the budget's, and that latency in milliseconds.

    Multiply-adds are halved between the smallest model's and the largest's until they are known to 2 %: no latency is
    ever estimated from others. Raises ImpossibleBudgetError naming the smallest model's.
    """
    limit = budget.max_latency_ms
    assert limit is not None
    rest = replace(budget, max_latency_ms=None)
    best = within(rest)
    found = latency(best)
    if found <= limit:
        return best, found
    most = best.cost.macs
    assert most is not None
    least = smallest_macs(within, rest)
    best = within(replace(rest, max_macs=least))
    found = latency(best)
    if found > limit:
        raise ImpossibleBudgetError(
            f"a budget of {limit:g} ms is impossible for these classes on this device: the smallest model "
            f"({best.cost.parameters:,} parameters) takes {found:.3g} ms a forward"
        )
    while most - least > 0.02 * most:
        middle = (most + least) // 2
        plan = within(replace(rest, max_macs=middle))
        milliseconds = latency(plan)
        if milliseconds <= limit:
            best, found, least = plan, milliseconds, middle
        else:
            most = middle
    return best, found


def smallest_macs(within: Callable[[Budget], Plan], rest: Budget) -> int:
    """Multiply-adds of the smallest model there is."""
    try:
        within(replace(rest, max_macs=1))
    except ImpossibleBudgetError as impossible:
        if impossible.smallest is not None:
            return impossible.smallest
        raise
    raise AssertionError("a model of one multiply-add")
