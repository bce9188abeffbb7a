"""One training of a study: in a folder of its own, gone on with where it was interrupted, measured on its way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from kindgene.files import read_json, write_json
from kindgene.progress import NoProgress, Progress
from kindgene.training.batches import Dataset
from kindgene.training.checkpoint import latest_checkpoint
from kindgene.training.config import TrainConfig
from kindgene.training.trainer import TrainResult, train

_MEASURED = "measured.json"


@dataclass(frozen=True)
class Curve:
    """`validation`: what was measured at each milestone, [] where training diverged; `seconds` spent in steps."""

    validation: list[float]
    seconds: float | None


def best_device() -> torch.device:
    """Where models are trained, and what does not move by itself is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_cell(
    model: nn.Module, data: Dataset, config: TrainConfig, folder: Path, progress: Progress | None = None
) -> TrainResult:
    """Trains `model`, or, where `folder` holds a run of it, takes over what is done; finished, nothing is computed."""
    resume = latest_checkpoint(folder / "checkpoints") is not None
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # killed before its first checkpoint
    return train(model, data, config, folder, resume=resume, progress=progress)


def train_curve(
    model: nn.Module,
    data: Dataset,
    config: TrainConfig,
    milestones: Sequence[float],
    measure: Callable[[nn.Module], float],
    folder: Path,
    progress: Progress | None = None,
) -> Curve:
    """`train_cell`, with `measure` of the EMA weights after each of these shares of the steps; the last share is 1.

    What is measured is kept in the run's folder, so that an interrupted training is not measured twice. The learning
    rate must not depend on the number of steps ("constant"): the parts are one training.
    """
    shown = _Whole(progress or NoProgress(), config.steps)
    steps = [max(1, round(share * config.steps)) for share in milestones]
    seconds = None
    try:
        for number, until in enumerate(steps):
            found = _measured(folder)
            if number < len(found) and number < len(steps) - 1:
                continue
            seconds = train_cell(model, data, replace(config, steps=until), folder, shown).seconds
            if number >= len(found):
                write_json(folder / _MEASURED, [*found, measure(model)])
        return Curve(_measured(folder), seconds)
    except FloatingPointError:
        return Curve([], None)
    finally:
        shown.end()


def _measured(folder: Path) -> list[float]:
    file = folder / _MEASURED
    found: list[float] = read_json(file) if file.is_file() else []
    return found


class _Whole:
    """Shows the parts of a training as one."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.begun = progress, total, False

    def start(self, total: int, done: int = 0) -> None:
        if not self.begun and done < self.total:
            self.begun = True
            self.progress.start(self.total, done)

    def update(
        self,
        done: int,
        loss: float | None = None,
        images_per_second: float | None = None,
        memory: float | None = None,
    ) -> None:
        if self.begun:
            self.progress.update(done, loss, images_per_second, memory)

    def close(self) -> None: ...

    def end(self) -> None:
        if self.begun:
            self.progress.close()
