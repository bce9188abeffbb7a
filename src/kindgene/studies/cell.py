"""One training of a study: in a folder of its own, gone on with where it was interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from kindgene.progress import Progress
from kindgene.training.batches import Dataset
from kindgene.training.checkpoint import latest_checkpoint
from kindgene.training.config import TrainConfig
from kindgene.training.trainer import TrainResult, train


def train_cell(
    model: nn.Module, data: Dataset, config: TrainConfig, folder: Path, progress: Progress | None = None
) -> TrainResult:
    """Trains `model`, or, where `folder` holds a run of it, takes over what is done; finished, nothing is computed."""
    resume = latest_checkpoint(folder / "checkpoints") is not None
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # killed before its first checkpoint
    return train(model, data, config, folder, resume=resume, progress=progress)
