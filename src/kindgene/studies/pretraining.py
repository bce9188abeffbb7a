"""The pretrain study: decomposable against dense DiT on the base classes, at equal steps, with the two controls.

Glyphs. Beside the decomposable model and its dense twin: a plain low-rank model of rank N_G + N_T without classes (is
it the classes, or just thin matrices?) and a dense model of as many stored parameters (is it just more numbers?). Each
at the learning rate of a grid of three that is best on validation images; figures are of test images. Every training
and its figures are a cell, kept in a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from kindgene.core.decomposable import Decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.data.glyphs import load_glyphs
from kindgene.data.superclasses import superclasses
from kindgene.diffusion.sampler import sample
from kindgene.evaluation.classifier import recognised, train_classifier
from kindgene.evaluation.cost import measure_cost
from kindgene.evaluation.denoising import validation_loss
from kindgene.files import StrPath
from kindgene.models.dit import DiT
from kindgene.progress import NoProgress, Progress
from kindgene.studies.cell import train_cell
from kindgene.studies.glyph_models import new_decomposable, new_dense
from kindgene.studies.kept import kept
from kindgene.training.config import TrainConfig
from kindgene.transfer.pretraining import dense_control, low_rank_control

ShowProgress = Callable[[str], Progress]

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "decomposable": "KIND",
        "dense": "the dense twin",
        "low rank": "rank N_G + N_T without classes",
        "dense, equal storage": "a dense DiT of as many stored parameters as KIND",
    }
)


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Sizes of the study. `milestones`: shares of the steps after which validation loss is measured; the last is 1."""

    classes: int
    per_class: int
    held_out: int
    samples: int
    sampling_steps: int
    image_size: int = 16
    patch_size: int
    width: int
    depth: int
    heads: int
    learngene_rank: int
    tailor_rank: int
    steps: int
    batch_size: int
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    ema_decay: float = 0.995
    milestones: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 1.0)
    draws: int = 8
    guidance: float = 1.5


SCALES: Mapping[str, PretrainSettings] = MappingProxyType(
    {
        "tiny": PretrainSettings(
            classes=3,
            per_class=6,
            held_out=2,
            samples=2,
            sampling_steps=2,
            patch_size=4,
            width=16,
            depth=1,
            heads=2,
            learngene_rank=4,
            tailor_rank=1,
            steps=2,
            batch_size=4,
            milestones=(0.5, 1.0),
            draws=1,
        ),
        "mini": PretrainSettings(
            classes=24,
            per_class=200,
            held_out=50,
            samples=32,
            sampling_steps=25,
            patch_size=4,
            width=96,
            depth=4,
            heads=4,
            learngene_rank=24,
            tailor_rank=3,
            steps=1500,
            batch_size=64,
        ),
        "full": PretrainSettings(
            classes=150,
            per_class=200,
            held_out=50,
            samples=16,
            sampling_steps=50,
            image_size=32,
            patch_size=4,
            width=384,
            depth=12,
            heads=6,
            learngene_rank=96,
            tailor_rank=4,
            steps=20_000,
            batch_size=256,
            rates=(2e-4, 5e-4, 1e-3),
            ema_decay=0.999,
        ),
    }
)


def pretrain_settings(scale: str) -> PretrainSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    if scale not in SCALES:
        raise ValueError(f"the pretrain study has no scale {scale!r}; there is {', '.join(SCALES)}")
    return SCALES[scale]


def run_pretrain(
    out: str | Path,
    *,
    seed: int = 0,
    scale: str = "mini",
    progress: ShowProgress | None = None,
    cache: StrPath | None = None,
) -> dict[str, Any]:
    """Trains every model at every rate under `out`; ``models``: name -> figures at its best rate. Plain data."""
    settings = pretrain_settings(scale)
    cells = _Cells(Path(out) / f"{scale}-seed{seed}", settings, seed, progress or (lambda cell: NoProgress()), cache)
    return {
        "study": "pretrain",
        "scale": scale,
        "seed": seed,
        "settings": _plain(settings),
        "classes": list(cells.names),
        "classifier_accuracy": cells.classifier.accuracy,
        "models": {name: cells.best(name) for name in MODELS},
    }


class _Cells:
    """The study's data, trainings and measurements."""

    def __init__(
        self, out: Path, settings: PretrainSettings, seed: int, show: ShowProgress, cache: StrPath | None
    ) -> None:
        self.out, self.settings, self.seed, self.show = out, settings, seed, show
        self.names = tuple(group.name for group in superclasses() if group.group == "base")[: settings.classes]

        def glyphs(split: Any, count: int) -> ArrayDataset:
            return load_glyphs(split, self.names, settings.image_size, per_class=count, cache=cache)

        self.train = glyphs("train", settings.per_class)
        self.validation, self.test = glyphs("validation", settings.held_out), glyphs("test", settings.held_out)
        self.classifier = train_classifier(self.train, self.test, seed=0)

    def best(self, name: str) -> dict[str, Any]:
        """The figures of a model at the rate with the least validation loss."""
        runs = [self.cell(name, rate) for rate in self.settings.rates]
        defined = [run for run in runs if run["test"] is not None]
        if not defined:
            raise ValueError(f"{name} diverged at every learning rate: {', '.join(map(str, self.settings.rates))}")
        chosen = min(defined, key=lambda run: run["validation"][-1])
        return {**chosen, "rates": {str(run["rate"]): run["validation"] for run in runs}}

    def cell(self, name: str, rate: float) -> dict[str, Any]:
        """One model at one rate: validation loss on the way, test loss, what of its samples is recognised, costs."""
        settings = self.settings
        key = f"{name}/{rate:g}".replace(" ", "-").replace(",", "")

        def compute() -> dict[str, Any]:
            model = self.model(name)
            cost = measure_cost(model)
            config = TrainConfig(
                steps=settings.steps,
                batch_size=settings.batch_size,
                learning_rate=rate,
                warmup_steps=min(50, settings.steps // 3),
                ema_decay=settings.ema_decay,
                seed=self.seed,
            )
            facts = {"rate": rate, "parameters": cost.parameters, "macs": cost.macs, "one_class": one_class(model)}
            validation: list[float] = []
            try:
                for share in settings.milestones:
                    part = replace(config, steps=max(1, round(share * config.steps)))
                    result = train_cell(model, self.train, part, self.out / key, self.show(key))
                    validation.append(self.loss(model, self.validation))
            except FloatingPointError:  # it diverged at this rate: there is no test loss
                return {**facts, "validation": [], "test": None, "recognised": None, "seconds": None}
            return {
                **facts,
                "validation": validation,
                "test": self.loss(model, self.test),
                "recognised": {str(weight): self.recognised(model, weight) for weight in (1.0, settings.guidance)},
                "seconds": result.seconds,
            }

        return kept(self.out / "cells" / f"{key}.json", _plain(settings), compute)

    def loss(self, model: nn.Module, data: ArrayDataset) -> float:
        return validation_loss(model, data, draws=self.settings.draws, seed=self.seed)

    def recognised(self, model: nn.Module, guidance: float) -> float:
        """Share of samples that the classifier takes for the class asked for."""
        asked = [name for name in self.names for _ in range(self.settings.samples)]
        images = sample(
            model,
            asked,
            guidance=guidance,
            steps=self.settings.sampling_steps,
            clip=1.0,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return recognised(self.classifier, images, asked).share

    def model(self, name: str) -> DiT | Decomposable:
        """A model at its first step."""
        settings = self.settings
        if name == "decomposable":
            return new_decomposable(self.names, settings, self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        dense = new_dense(self.names, settings, self.seed)
        if name == "dense":
            return dense
        if name == "low rank":
            return low_rank_control(dense, settings.learngene_rank + settings.tailor_rank, generator=generator)
        stored = sum(value.numel() for value in self.model("decomposable").parameters())
        return dense_control(dense, stored, generator=generator)


def one_class(model: nn.Module) -> int:
    """Numbers that a deployment for one class needs: of a decomposable model the learngene and one tailor; else all."""
    whole = sum(value.numel() for value in model.parameters())
    if not isinstance(model, Decomposable):
        return whole
    tables = model.bank.tables.values()
    return whole - sum((table.count - 1) * table.rows.shape[1] for table in tables)


def _plain(settings: PretrainSettings) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return found
