"""Denoising at fixed noise and timesteps: the validation loss, a finer measure than looks, and calibration batches.

Everything random is a function of the seed, so two models are compared on the very same noised images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kindgene import random
from kindgene.data.dataset import Dataset
from kindgene.diffusion.loss import NoisedBatch, denoising_loss, noise_batch
from kindgene.diffusion.path import DiffusionPath

DRAWS = 8
"""Timesteps of each image in a validation loss."""


def noised_batches(
    dataset: Dataset, path: DiffusionPath, *, draws: int, batch_size: int, seed: int
) -> Iterator[NoisedBatch]:
    """Every image of `dataset` at `draws` timesteps, one from each of as many equal spans, each with its own noise.

    Raises ValueError for numbers below 1.
    """
    if draws < 1 or batch_size < 1:
        raise ValueError(f"draws and batch_size must be at least 1, got {draws} and {batch_size}")
    count = len(dataset) * draws
    for first in range(0, count, batch_size):
        numbers = torch.arange(first, min(first + batch_size, count))
        image_B, span_B = numbers // draws, numbers % draws
        x0 = dataset.batch(image_B)
        noise = random.noise(seed, numbers, x0.shape[1:])
        within_B = random.uniform(seed, random.Purpose.TIMESTEP, numbers).double()
        t_B = ((span_B + within_B) * path.num_steps / draws).long()
        yield noise_batch(path, x0, dataset.labels[image_B], t_B, noise)


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    dataset: Dataset,
    *,
    path: DiffusionPath | None = None,
    draws: int = DRAWS,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """Mean denoising loss of `model` on `dataset`, whose classes are the model's in the model's order."""
    path = DiffusionPath.of(model) if path is None else path
    like = next(value for value in model.parameters() if value.is_floating_point())
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in noised_batches(dataset, path, draws=draws, batch_size=batch_size, seed=seed):
        x_t, t, labels = batch.x_t.to(like), batch.t.to(like.device), batch.labels.to(like.device)
        output: Any = model(x_t, t, labels)
        output = output if isinstance(output, Tensor) else output.sample
        total += float(denoising_loss(path, output.cpu(), batch).double().sum())
        count += len(batch.t)
    model.train(was_training)
    return total / count


def calibration_batches(
    dataset: Dataset,
    path: DiffusionPath,
    *,
    count: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`count` batches of (noised images, timesteps, labels), drawn in a random order: for `Pool.plan(calibration=)`."""
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
    for number in range(count):
        numbers = range(number * batch_size, (number + 1) * batch_size)
        indices_B = random.sample_indices(seed, numbers, len(dataset))
        x0 = dataset.batch(indices_B)
        noise = random.noise(seed, numbers, x0.shape[1:])
        t_B = random.timesteps(seed, numbers, path.num_steps)
        yield path.add_noise(x0, noise, t_B).to(dtype), t_B, dataset.labels[indices_B]
