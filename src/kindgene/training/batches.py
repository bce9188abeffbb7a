"""What a process computes in each step, as a function of the step alone; read ahead by other processes if wanted.

Shapes: B samples of an optimizer step, b of them this process's own, m of a micro-batch.

Sample numbers are global: step k of a run uses the numbers k*B to (k+1)*B - 1. Everything about a sample follows from
its number, so nothing has to be remembered, and each process reads its own samples only.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as MapDataset

from kindgene import random
from kindgene.diffusion.loss import drop_labels
from kindgene.training.config import TrainConfig
from kindgene.training.placement import Division


class Dataset(Protocol):
    """What training needs of a data set; those of `kindgene.data` have it."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], one a sample; the number of classes for one without class."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""

    def sample(self, indices: Tensor, numbers: Tensor, seed: int) -> Tensor:
        """The images [B, C, H, W] at `indices` [B] for the samples `numbers` [B]: what is random is of these alone."""

    def fingerprint(self) -> dict[str, Any]:
        """What tells this data from other data, as plain data."""


@dataclass(frozen=True)
class Share:
    """What one process does of a step.

    numbers [b]: of its samples. labels [b]: theirs, some dropped. gathered: labels whose rows it needs. weight: 0 for a
    process that has nothing to do and computes one sample that does not count, because all take part in the sums.
    """

    numbers: Tensor
    labels: Tensor
    gathered: Tensor
    weight: float


@dataclass(frozen=True)
class MicroBatch:
    """Images [m, C, H, W], their noise, timesteps [m] and labels [m], on the CPU."""

    images: Tensor
    noise: Tensor
    t: Tensor
    labels: Tensor

    def pin_memory(self) -> MicroBatch:
        """The same in memory that a GPU can read by itself; torch's loader asks for it."""
        return MicroBatch(*(getattr(self, name).pin_memory() for name in ("images", "noise", "t", "labels")))


class Batches(MapDataset[MicroBatch | None]):
    """The batches of one process in a run. An item is (step, part): one of the micro-batches a step is cut into."""

    def __init__(
        self,
        dataset: Dataset,
        config: TrainConfig,
        *,
        null_class: int | None,
        num_timesteps: int,
        division: Division,
        rank: int = 0,
    ) -> None:
        self.dataset, self.config = dataset, config
        self.null_class, self.num_timesteps = null_class, num_timesteps
        self.division, self.rank = division, rank

    def step_labels(self, step: int) -> Tensor:
        """Labels [B] of the whole step, some of them dropped."""
        config = self.config
        numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
        labels_B = self.dataset.labels[random.sample_indices(config.seed, numbers, len(self.dataset.labels))]
        uniform_B = random.uniform(config.seed, random.Purpose.LABEL_DROP, numbers)
        return drop_labels(labels_B, self.null_class, uniform_B, config.label_drop)

    def share(self, step: int) -> Share:
        """What this process does of the step."""
        labels_B = self.step_labels(step)
        own_b = self.division.share(labels_B, self.rank)
        numbers_b, labels_b = own_b + step * self.config.batch_size, labels_B[own_b]
        weight = 1.0
        if len(own_b) == 0:
            idle = labels_B[:1] if self.null_class is None else torch.tensor([self.null_class])
            numbers_b, labels_b, weight = torch.tensor([step * self.config.batch_size]), idle, 0.0
        return Share(numbers_b, labels_b, self.division.gathered(labels_B, labels_b), weight)

    def __getitem__(self, item: tuple[int, int]) -> MicroBatch | None:
        step, part = item
        share, parts, seed = self.share(step), self.config.gradient_accumulation_steps, self.config.seed
        numbers, labels = (values.tensor_split(parts)[part] for values in (share.numbers, share.labels))
        if len(numbers) == 0:
            return None
        indices = random.sample_indices(seed, numbers, len(self.dataset.labels))
        images = self.dataset.sample(indices, numbers, seed)
        noise = random.noise(seed, numbers, images.shape[1:])
        return MicroBatch(images, noise, random.timesteps(seed, numbers, self.num_timesteps), labels)

    def read(self, first: int, device: torch.device) -> Iterator[MicroBatch | None]:
        """The micro-batches of the steps from `first` on, in order: of each all its parts, None for an empty one."""
        config = self.config
        items = _Items(first, config.steps, config.gradient_accumulation_steps)
        if config.num_workers == 0:
            return (self[item] for item in items)
        loader: DataLoader[MicroBatch | None] = DataLoader(
            self,
            batch_size=None,
            sampler=items,
            num_workers=config.num_workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=_begin_worker,
        )
        return iter(loader)


class _Items(Sampler[tuple[int, int]]):
    """Steps from `first` to before `last`, each in `parts`."""

    def __init__(self, first: int, last: int, parts: int) -> None:
        self.steps, self.parts = range(first, last), parts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, part) for step in self.steps for part in range(self.parts))


def _begin_worker(number: int) -> None:
    """A reader leaves Ctrl-C to the process that trains, which finishes its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
