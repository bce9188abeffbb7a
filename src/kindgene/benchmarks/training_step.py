"""What a training step costs: against other ways to compute it, and as the number of classes grows."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kindgene.benchmarks.baselines import MaskedFullRank, PerClassLoop, with_layers
from kindgene.benchmarks.models import Shape, batch_of, decomposable_model, dense_model
from kindgene.benchmarks.timing import clock, take_turns
from kindgene.core.bank import GatheredRows
from kindgene.core.decomposable import Decomposable
from kindgene.training.ema import EMA
from kindgene.training.optimizer import ModelAdamW

WAYS = ("decomposable", "dense", "masked full rank", "per-class loop")
Batch = tuple[Tensor, Tensor, Tensor]


def build(way: str, shape: Shape, classes: int, tailor_rank: int | None = None) -> nn.Module:
    """A model that is to be trained one of the `WAYS`."""
    if way == "dense":
        return dense_model(shape, classes)
    model = decomposable_model(shape, classes, tailor_rank=tailor_rank)
    if way == "masked full rank":
        return with_layers(model, MaskedFullRank)
    return with_layers(model, PerClassLoop) if way == "per-class loop" else model


class Step:
    """A training step of one model on one batch, with AdamW and the moving average."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.optimizer, self.ema = ModelAdamW(model), EMA(model, 0.9999)

    def gradients(self) -> GatheredRows | None:
        """Forward and backward; the rows of the tailors that the batch has."""
        x, t, y = self.batch
        rows = self.model.bank.gather(y) if isinstance(self.model, Decomposable) else None
        output = self.model(x, t, y) if rows is None else self.model(x, t, y, rows=rows)
        output.square().mean().backward()
        return rows

    def whole(self) -> tuple[float, float]:
        """Makes a step; seconds of its forward and backward, and of all of it."""
        now = clock()
        began = now()
        rows = self.gradients()
        gradients = now() - began
        self.optimizer.step(1e-4, rows)
        self.ema.update(rows)
        self.optimizer.zero_grad()
        return gradients, now() - began


def measure_steps(shape: Shape, classes: int, repeats: int, ways: Sequence[str] = WAYS) -> dict[str, dict[str, float]]:
    """Median seconds of each way: `forward_backward` and `whole`. The ways take turns, after a round to warm up."""
    batch = batch_of(shape, classes)
    steps = {way: Step(build(way, shape, classes), batch) for way in ways}
    times = {way: list[tuple[float, float]]() for way in ways}
    for turn in range(1 + repeats):
        for way in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            found = steps[way].whole()
            if turn:
                times[way].append(found)
    medians = {way: [statistics.median(values) for values in zip(*times[way], strict=True)] for way in ways}
    return {way: dict(zip(("forward_backward", "whole"), medians[way], strict=True)) for way in ways}


def measure_growth(shape: Shape, counts: Sequence[int], repeats: int) -> dict[int, float]:
    """Median seconds of a whole step of the decomposable model for each number of classes; tailors of rank 1.

    The batch has the same number of different classes throughout, as many as the fewest classes allow.
    """
    few = batch_of(shape, min(counts), null_share=shape.batch)
    steps = {}
    for count in counts:
        x, t, y = few
        labels = torch.where(y == min(counts), count, y * (count // min(counts)))
        steps[count] = Step(build("decomposable", shape, count, tailor_rank=1), (x, t, labels))
    actions: Mapping[str, Callable[[], Any]] = {str(count): step.whole for count, step in steps.items()}
    found = take_turns(actions, repeats)
    return {count: found[str(count)] for count in counts}


def peak_memory(way: str, shape: Shape, classes: int) -> int:
    """Bytes that two whole steps of a model add at most to a fresh process that has torch loaded."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (way, shape, classes))


def _peak(way: str, shape: Shape, classes: int) -> int:
    torch.set_num_threads(1)
    before = _high_water()
    step = Step(build(way, shape, classes), batch_of(shape, classes))
    for _ in range(2):
        step.whole()
    return _high_water() - before


def _high_water() -> int:
    """Most bytes resident so far: of this program alone, which getrusage's figure is not in a spawned process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("this system does not tell a process's peak memory in /proc/self/status")
