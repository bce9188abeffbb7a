"""What a study says of a trained model: its loss, what is recognised of its samples, how far they are from real ones.

Every model is asked for the same classes with the same noise; the validation and the test loss are at the same noise
and timesteps for all. Frechet distances are of the eyes' features against the training images of the same classes, with
as many samples for every model: they compare within a study, never with published figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kindgene.data.dataset import Dataset
from kindgene.diffusion.sampler import sample
from kindgene.evaluation.classifier import Judge, tally
from kindgene.evaluation.denoising import validation_loss
from kindgene.evaluation.features import Extractor, batches_of, to_pixels
from kindgene.evaluation.frechet import frechet_distance
from kindgene.evaluation.statistics import Gaussian, Statistics
from kindgene.studies.source import Splits
from kindgene.studies.strips import write_strip

SAMPLER = "ddim"
"""Of every sample that a study draws."""
_AT_ONCE = 512
_NUMBERS = 2**24
"""So many numbers of images at most are held as floats at a time."""
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Look:
    """How samples are drawn: `samples` of each class in so many `sampling_steps`, at each of the `guidances`."""

    samples: int
    sampling_steps: int
    guidances: tuple[float, ...]
    draws: int


class Eyes:
    """Measures models of the classes of `splits`, with one extractor and one judge; without, nothing is recognised."""

    def __init__(self, splits: Splits, extractor: Extractor, judge: Judge | None, look: Look, seed: int) -> None:
        self.splits, self.extractor, self.judge, self.look, self.seed = splits, extractor, judge, look, seed

    def unguided(self) -> Eyes:
        """The same for models without a null class, which cannot be guided."""
        look = replace(self.look, guidances=(1.0,))
        return Eyes(self.splits, self.extractor, self.judge, look, self.seed)

    def told(self) -> dict[str, Any]:
        """What figures were measured with, plain data."""
        look = self.look
        return {
            **sampled_with(look.samples, look.sampling_steps, look.guidances, self.splits.clip),
            "loss_draws": look.draws,
            "extractor": self.extractor.to_dict(),
            "judge": None if self.judge is None else self.judge.to_dict(),
        }

    def loss(self, model: nn.Module, data: Dataset) -> float:
        """The denoising loss on all images of `data`."""
        return validation_loss(model, data, draws=self.look.draws, seed=self.seed)

    def figures(self, model: nn.Module, picture: Path) -> dict[str, Any]:
        """Test loss, and for each guidance (``"1.0"``) the recognised share and the Frechet distance.

        Writes samples at the last guidance to `picture`: two of each of up to eight classes, evenly spaced.
        """
        names = self.splits.train.class_names
        asked = [name for name in names for _ in range(self.look.samples)]
        found: dict[str, Any] = {"test": self.loss(model, self.splits.test), "recognised": {}, "fd": {}}
        for guidance in self.look.guidances:
            samples = sample(
                model,
                asked,
                guidance=guidance,
                steps=self.look.sampling_steps,
                scheduler=SAMPLER,
                clip=self.splits.clip,
                generator=torch.Generator().manual_seed(self.seed),
            )
            seen, taken_for = self.looked_at(self.splits.drawn(part) for part in samples.split(2 * self.at_once))
            if self.judge is not None:
                found["recognised"][str(guidance)] = tally(self.judge, taken_for, asked).share
            found["fd"][str(guidance)] = frechet_distance(self.reference, seen)
        write_strip(picture, self.splits.drawn(samples[shown(len(names), self.look.samples)]))
        return found

    def real(self, picture: Path) -> dict[str, Any]:
        """The same of the real test images: what is recognised of them, and their distance; a strip of them."""
        _, test = self.splits.seen
        names = [test.class_names[label] for label in test.labels.tolist()]
        parts = torch.arange(len(test)).split(2 * self.at_once)
        seen, taken_for = self.looked_at(test.batch(part) for part in parts)
        write_strip(picture, test.batch(first_shown(test.labels, len(test.class_names))))
        share = None if self.judge is None else tally(self.judge, taken_for, names).share
        return {"recognised": share, "fd": frechet_distance(self.reference, seen)}

    @property
    def at_once(self) -> int:
        """Images that the extractor sees at a time."""
        return min(_AT_ONCE, max(1, _NUMBERS // math.prod(self.splits.seen[0].shape)))

    @cached_property
    def reference(self) -> Gaussian:
        """Of the training images."""
        statistics = Statistics(self.extractor.dimension)
        for pixels, _ in batches_of(self.splits.seen[0], self.at_once):
            statistics.update(self.extractor(pixels).pooled)
        return statistics.gaussian()

    def seen(self, images: Tensor) -> Gaussian:
        """Of images [N, C, H, W] in [-1, 1]."""
        statistics = Statistics(self.extractor.dimension)
        self._see(statistics, images)
        return statistics.gaussian()

    def looked_at(self, parts: Iterable[Tensor]) -> tuple[Gaussian, Tensor]:
        """The Gaussian of images that come part by part, and the label that the judge takes each for (without: -1)."""
        statistics, taken_for = Statistics(self.extractor.dimension), []
        for images in parts:
            self._see(statistics, images)
            taken_for.append(torch.full((len(images),), -1) if self.judge is None else self.judge.predict(images))
        return statistics.gaussian(), torch.cat(taken_for)

    def _see(self, statistics: Statistics, images: Tensor) -> None:
        for pixels in to_pixels(images).split(self.at_once):
            statistics.update(self.extractor(pixels).pooled)


def sampled_with(samples: int, steps: int, guidances: Sequence[float], clip: float | None) -> dict[str, Any]:
    """How a study draws, plain data: `samples` of each class, from noise of the study's seed, with the EMA weights."""
    return {
        "sampler": SAMPLER,
        "sampling_steps": steps,
        "guidances": list(guidances),
        "samples_per_class": samples,
        "clip": clip,
        "weights": "EMA",
    }


def shown(classes: int, each: int) -> Tensor:
    """Positions of two samples of each of up to eight classes, evenly spaced, in samples that lie class by class."""
    return first_shown(torch.arange(classes).repeat_interleave(each), classes)


def first_shown(labels: Tensor, classes: int) -> Tensor:
    """Positions of the first two images of each of up to eight classes, evenly spaced."""
    chosen = torch.linspace(0, classes - 1, min(classes, _SHOWN)).round().long().tolist()
    return torch.cat([(labels == label).nonzero().flatten()[:2] for label in chosen])


class DivergedError(ValueError):
    """Training diverged at every learning rate that was tried."""


def best_rate(runs: Sequence[tuple[float, dict[str, Any]]]) -> float:
    """The rate whose last validation loss is least. Raises DivergedError where training diverged at every one."""
    defined = [(found["validation"][-1], rate) for rate, found in runs if found["validation"]]
    if not defined:
        raise DivergedError(f"training diverged at every learning rate: {', '.join(f'{rate:g}' for rate, _ in runs)}")
    return min(defined)[1]
