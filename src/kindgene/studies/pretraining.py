"""The pretrain study: decomposable against dense DiT on the base classes, at equal steps, with the two controls.

Glyphs. Beside the decomposable model and its dense twin: a plain low-rank model of rank N_G + N_T without classes (is
it the classes, or just thin matrices?) and a dense model of as many stored parameters (is it just more numbers?). Each
at the learning rate of a grid that is best on validation images of seed 0; figures are of test images.

The models are pre-trained once: the deploy, novel, shift and ablate studies begin with these.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Unpack

import torch
from torch import nn

from kindgene.core.decomposable import Decomposable
from kindgene.evaluation.cost import measure_cost
from kindgene.files import StrPath
from kindgene.models.dit import DiT
from kindgene.studies.cell import best_device, train_curve
from kindgene.studies.cells import Cells, Place, settings_of
from kindgene.studies.glyph_models import new_decomposable, new_dense
from kindgene.studies.latents import Latents, backbone_choices, preset_sizes, train_choices
from kindgene.studies.measure import Eyes, Look, best_rate
from kindgene.studies.source import Glyphs, Source, Splits
from kindgene.training.config import TrainConfig
from kindgene.training.estimate import estimate
from kindgene.transfer.pretraining import dense_control, low_rank_control

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "decomposable": "KIND",
        "dense": "the dense twin",
        "low-rank": "rank N_G + N_T without classes",
        "dense-equal": "a dense DiT of as many stored parameters as KIND",
    }
)
FINAL = "final"
REAL = "real"


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
    guidances: tuple[float, ...] = (1.0, 1.5)
    mixed_precision: Literal["no", "bf16"] = "no"
    quick: bool = False

    @property
    def look(self) -> Look:
        return Look(
            samples=self.samples, sampling_steps=self.sampling_steps, guidances=self.guidances, draws=self.draws
        )


@dataclass(frozen=True, kw_only=True)
class LatentPretrainSettings(Latents, PretrainSettings):
    """Of models of latents."""


_IMAGENET = LatentPretrainSettings(
    classes=150,
    per_class=0,
    held_out=0,
    samples=334,
    sampling_steps=50,
    **preset_sizes("DiT-B/4"),
    learngene_rank=168,
    tailor_rank=4,
    steps=400_000,
    batch_size=256,
    rates=(1e-4,),
    ema_decay=0.9999,
    mixed_precision="bf16",
)

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
            depth=2,
            heads=2,
            learngene_rank=4,
            tailor_rank=1,
            steps=3,  # after two, a dense model's adaLN has rows of zeros, which DoRA divides by
            batch_size=4,
            milestones=(0.5, 1.0),
            draws=1,
            quick=True,
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
            learngene_rank=36,
            tailor_rank=3,
            steps=1600,
            batch_size=64,
            rates=(1e-3, 2e-3, 4e-3, 8e-3),
        ),
        "full": PretrainSettings(
            classes=150,
            per_class=200,
            held_out=50,
            samples=32,
            sampling_steps=50,
            image_size=32,
            patch_size=4,
            width=384,
            depth=12,
            heads=6,
            learngene_rank=96,
            tailor_rank=4,
            steps=2_000,
            batch_size=256,
            rates=(3e-4, 6e-4, 1.2e-3),
            ema_decay=0.998,
            mixed_precision="bf16",
        ),
        "imagenet": _IMAGENET,
        "imagenet-l4": replace(_IMAGENET, **preset_sizes("DiT-L/4"), learngene_rank=224, tailor_rank=5),
    }
)


def pretrain_settings(scale: str) -> PretrainSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    return settings_of("pretrain", SCALES, scale)


class Pretraining(Cells):
    """The trainings: ``MODEL/RATE`` for seed 0, and for every seed ``MODEL/final`` at the best of those rates."""

    study = "pretrain"
    settings: PretrainSettings

    def __init__(self, folder: StrPath, **place: Unpack[Place]) -> None:
        super().__init__(folder, SCALES, **place)
        sizes = self.settings.image_size, self.settings.per_class, self.settings.held_out
        self.source: Source = place.get("source") or Glyphs(*sizes, quick=self.settings.quick, cache=self.cache)
        self.told |= self.source.told()
        self.classes = self.source.base[: self.settings.classes]

    def names(self) -> tuple[str, ...]:
        grid = [f"{name}/{rate:g}" for name in MODELS for rate in self.settings.rates if self.seed == 0]
        return (REAL, *grid, *(f"{name}/{FINAL}" for name in MODELS))

    def compute(self, name: str) -> dict[str, Any]:
        if name == REAL:
            return {**self.eyes.real(self.picture(REAL)), "extractor": self.source.eyes.to_dict()}
        kind, _, rate = name.partition("/")
        if rate != FINAL:
            return self.train(self.new(kind), name, float(rate))
        model = self.new(kind)
        cost = measure_cost(model)
        costs = {"parameters": cost.parameters, "macs": cost.macs, "one_class": one_class(model)}
        trained = self.trained(kind, model)
        if not trained["validation"]:
            raise ValueError(f"{kind} diverged with seed {self.seed} at {self.rate(kind):g}, the best rate of seed 0")
        self.forget(kind)
        return {**trained, **costs, **self.eyes.figures(model, self.picture(name))}

    def forget(self, kind: str) -> None:
        """Removes the checkpoints of all rates but the best: they are large."""
        for rate in self.settings.rates:
            if rate != self.rate(kind):
                shutil.rmtree(self.folder / "runs" / kind / f"{rate:g}", ignore_errors=True)

    def result(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "scale": self.scale,
            "seed": self.seed,
            "settings": self.told,
            "measured_with": self.eyes.told(),
            "classes": list(self.classes),
            "real": self.get(REAL),
            "models": {name: {**self.get(f"{name}/{FINAL}"), "rates": self.grid(name)} for name in MODELS},
            "pictures": {name: str(self.picture(name)) for name in (REAL, *(f"{one}/{FINAL}" for one in MODELS))},
        }

    def outlook(self) -> dict[str, Any]:
        """Cells; what each model is; what training the decomposable one takes on this machine."""
        settings, models = self.settings, {}
        for kind in MODELS:
            cost = measure_cost(self.new(kind))
            models[kind] = {"parameters": cost.parameters, "macs": cost.macs}
        model = self.new("decomposable").to(best_device())
        shape = backbone_choices(settings)["in_channels"], settings.image_size, settings.image_size
        return {
            **super().outlook(),
            "models": models,
            "estimate": estimate(model, shape, self.config(settings.rates[0]), macs=models["decomposable"]["macs"]),
        }

    def grid(self, kind: str) -> dict[str, list[float]]:
        """Rate -> validation losses on the way, of seed 0; [] where it diverged."""
        first = self.of_seed(0)
        return {f"{rate:g}": first.get(f"{kind}/{rate:g}")["validation"] for rate in self.settings.rates}

    def rate(self, kind: str) -> float:
        """The best learning rate, chosen with seed 0."""
        return best_rate([(float(rate), {"validation": losses}) for rate, losses in self.grid(kind).items()])

    def trained(self, kind: str, model: nn.Module) -> dict[str, Any]:
        """Brings a new model of this kind to the end of its training at the best rate; loss on the way, seconds."""
        return self.train(model, f"{kind}/{self.rate(kind):g}", self.rate(kind))

    def train(self, model: nn.Module, run: str, rate: float) -> dict[str, Any]:
        """Trains, or takes over what is trained; validation loss at the milestones, [] where it diverged."""
        run_folder, splits = self.folder / "runs" / run, self.splits
        curve = train_curve(
            model,
            splits.train,
            self.config(rate),
            self.settings.milestones,
            lambda trained: self.eyes.loss(trained, splits.validation),
            run_folder,
            self.show(run),
        )
        return {"rate": rate, "validation": curve.validation, "seconds": curve.seconds}

    def config(self, rate: float) -> TrainConfig:
        """How every model is trained."""
        settings = self.settings
        return TrainConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=rate,
            warmup_steps=min(50, settings.steps // 3),
            ema_decay=settings.ema_decay,
            checkpoints_total_limit=1,
            mixed_precision=settings.mixed_precision,
            seed=self.seed,
            **train_choices(settings),
        )

    def model(self, kind: str) -> DiT | Decomposable:
        """A trained model of this kind; what is missing is computed first."""
        self.get(f"{kind}/{FINAL}")
        model = self.new(kind)
        self.trained(kind, model)
        return model

    def new(self, kind: str) -> DiT | Decomposable:
        """A model of this kind at its first step."""
        settings = self.settings
        if kind == "decomposable":
            return new_decomposable(self.classes, settings, self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        dense = new_dense(self.classes, settings, self.seed)
        if kind == "dense":
            return dense
        if kind == "low-rank":
            return low_rank_control(dense, settings.learngene_rank + settings.tailor_rank, generator=generator)
        stored = sum(value.numel() for value in self.new("decomposable").parameters())
        return dense_control(dense, stored, generator=generator)

    @cached_property
    def splits(self) -> Splits:
        """The base classes' images."""
        return self.source.splits(self.classes)

    @cached_property
    def eyes(self) -> Eyes:
        judge = self.source.judge(self.splits)
        return Eyes(self.splits, self.source.eyes, judge, self.settings.look, self.seed)


def one_class(model: nn.Module) -> int:
    """Numbers that a deployment for one class needs: of a decomposable model the learngene and one tailor; else all."""
    whole = sum(value.numel() for value in model.parameters())
    if not isinstance(model, Decomposable):
        return whole
    tables = model.bank.tables.values()
    return whole - sum((table.count - 1) * table.rows.shape[1] for table in tables)
