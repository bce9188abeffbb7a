"""Every model of a study measured in the same way: sampled, recognised by one classifier, its cost counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from kindgene.diffusion.sampler import sample
from kindgene.evaluation.classifier import Classifier, recognised
from kindgene.evaluation.cost import measure_cost
from kindgene.studies.result import Measured
from kindgene.studies.settings import DemoSettings
from kindgene.training.trainer import TrainResult


class Bench:
    """Samples with the settings' sampler from noise of `seed`; a model without a null class is not guided."""

    def __init__(self, settings: DemoSettings, seed: int, classifier: Classifier) -> None:
        self.settings, self.seed, self.classifier = settings, seed, classifier

    def draw(self, model: Any, asked: Sequence[str | None]) -> torch.Tensor:
        """Samples [N, C, H, W] of the classes asked for."""
        settings = self.settings
        return sample(
            model,
            asked,
            guidance=self._guidance(model),
            steps=settings.sampling_steps,
            scheduler=settings.scheduler,
            clip=settings.clip,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def measure(
        self, title: str, model: Any, classes: Sequence[str], seconds: float, run: TrainResult | None = None
    ) -> Measured:
        """A model's row; `seconds` is what making it took, `run` the training it came from, if any."""
        settings = self.settings
        count = settings.single_class_samples if len(classes) == 1 else settings.samples_per_class
        asked = [name for name in classes for _ in range(count)]
        tick = time.perf_counter()
        images = self.draw(model, asked)
        sampling_seconds = time.perf_counter() - tick
        seen = recognised(self.classifier, images, asked)
        row: dict[str, Any] = {
            "title": title,
            "classes": list(classes),
            "recognised": seen.share,
            "per_class": seen.per_class,
            "samples": seen.count,
            "guidance": self._guidance(model),
            **measure_cost(model).to_dict(),
            "seconds": seconds,
            "sampling_seconds": sampling_seconds,
        }
        if run is not None:
            row |= {"steps": run.steps, "images_seen": run.images, "final_loss": run.final_loss}
        return Measured(title, row, images, asked)

    def _guidance(self, model: Any) -> float:
        return self.settings.guidance if model.null_class is not None else 1.0
