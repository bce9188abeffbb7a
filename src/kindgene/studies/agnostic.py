"""The agnostic study: is the learngene class-agnostic, and is it the components or the label row that carry the class?

KIND says that the learngene holds what all classes share and a tailor what one class needs. A learngene that draws all
classes alike proves little where the null class trained it as an unconditional model: so the primary model is trained
with label drop 0, in which every step of the learngene had a class's tailor beside it. On it, components {own, another
class's, none} and label row {own, another class's, null} are put together in all nine ways, and the source's judge,
which has seen none of the models, says what is drawn. Beside it: the same with label drop 0.1, and the control N_T = 0,
whose classes have label rows alone.

Shapes: C classes, N samples (N / C of each class).
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from kindgene.core.decomposable import Decomposable
from kindgene.diffusion.sampler import sample
from kindgene.evaluation.classifier import Judge
from kindgene.files import StrPath
from kindgene.studies.cell import train_cell
from kindgene.studies.cells import Cells, Place, settings_of
from kindgene.studies.glyph_models import new_decomposable
from kindgene.studies.latents import Latents, preset_sizes, train_choices
from kindgene.studies.measure import SAMPLER, sampled_with
from kindgene.studies.source import Glyphs, Source, Splits
from kindgene.studies.strips import write_strip
from kindgene.training.config import TrainConfig

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "label-drop-0": "primary: the learngene was never trained alone",
        "label-drop-0.1": "the null class trains the learngene alone in a tenth of all samples",
        "label-rows-only": "control N_T = 0, label drop 0: tailors are zero and stay so",
    }
)
PARTS = ("own", "other", "none")
"""Whose tailor components a sample of a class uses; whose label row likewise, "none" being the null row."""
COMBINATIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {f"{components}-{row}": (components, row) for components in PARTS for row in PARTS}
)
REAL = "real"
_AT_ONCE = 256
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class AgnosticSettings:
    """Sizes of the study; of each class: `per_class` images train, `held_out` are judged, `samples` are drawn."""

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
    learning_rate: float = 2e-3
    ema_decay: float = 0.995
    schedule: Literal["constant", "cosine"] = "cosine"
    mixed_precision: Literal["no", "bf16"] = "no"
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class LatentAgnosticSettings(Latents, AgnosticSettings):
    """Of models of latents; the rate is constant, as in the published training."""

    schedule: Literal["constant", "cosine"] = "constant"


_IMAGENET = LatentAgnosticSettings(
    classes=150,
    per_class=0,
    held_out=0,
    samples=16,
    sampling_steps=50,
    **preset_sizes("DiT-B/4"),
    learngene_rank=168,
    tailor_rank=4,
    steps=400_000,
    batch_size=256,
    learning_rate=1e-4,
    ema_decay=0.9999,
    mixed_precision="bf16",
)

SCALES: Mapping[str, AgnosticSettings] = MappingProxyType(
    {
        "tiny": AgnosticSettings(
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
            steps=3,
            batch_size=4,
            quick=True,
        ),
        "mini": AgnosticSettings(
            classes=16,
            per_class=200,
            held_out=50,
            samples=32,
            sampling_steps=25,
            patch_size=4,
            width=96,
            depth=4,
            heads=4,
            learngene_rank=24,
            tailor_rank=4,
            steps=2000,
            batch_size=64,
        ),
        "full": AgnosticSettings(
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
            steps=2_000,
            batch_size=256,
            learning_rate=6e-4,
            ema_decay=0.998,
            mixed_precision="bf16",
        ),
        "imagenet": _IMAGENET,
        "imagenet-l4": replace(_IMAGENET, **preset_sizes("DiT-L/4"), learngene_rank=224, tailor_rank=5),
    }
)


def agnostic_settings(scale: str) -> AgnosticSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    return settings_of("agnostic", SCALES, scale)


class Agnostic(Cells):
    """A cell a model, of its name: trained, drawn from in all nine ways, judged; ``real``: the judge on real images.

    A model's samples are ``MODEL/COMPONENTS-ROW.png``: one of each of up to eight classes.
    """

    study = "agnostic"
    settings: AgnosticSettings

    def __init__(self, folder: StrPath, **place: Unpack[Place]) -> None:
        super().__init__(folder, SCALES, **place)
        sizes = self.settings.image_size, self.settings.per_class, self.settings.held_out
        self.source: Source = place.get("source") or Glyphs(*sizes, quick=self.settings.quick, cache=self.cache)
        self.told |= self.source.told()
        self.classes = self.source.base[: self.settings.classes]

    def names(self) -> tuple[str, ...]:
        return (REAL, *MODELS)

    def compute(self, name: str) -> dict[str, Any]:
        if name == REAL:
            _, test = self.splits.seen
            numbers = torch.arange(len(test)).split(_AT_ONCE)
            taken_for = torch.cat([self.judge.predict(test.batch(part)) for part in numbers])
            return {
                "figures": judged(test.labels, taken_for, len(self.classes)),
                "extractor": self.source.eyes.to_dict(),
            }
        model = self.new(name)
        trained = self.train(model, name)
        found = {"combinations": {key: self.drawn(model, name, key) for key in COMBINATIONS}, **trained}
        shutil.rmtree(self.folder / "runs" / name, ignore_errors=True)  # nothing begins with these models
        return found

    def result(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "scale": self.scale,
            "seed": self.seed,
            "settings": self.told,
            "measured_with": {
                **sampled_with(self.settings.samples, self.settings.sampling_steps, (1.0,), self.splits.clip),
                "judge": self.judge.to_dict(),
            },
            "classes": list(self.classes),
            "real": self.get(REAL),
            "models": {name: self.get(name) for name in MODELS},
            "pictures": {
                f"{name}/{key}": str(self.picture(f"{name}/{key}")) for name in MODELS for key in COMBINATIONS
            },
        }

    def new(self, name: str) -> Decomposable:
        """A model at its first step; of label rows alone its tailors are zero and are not trained."""
        model = new_decomposable(self.classes, self.settings, self.seed)
        if name == "label-rows-only":
            with torch.no_grad():
                model.bank.tailors.rows.zero_()
            model.bank.tailors.rows.requires_grad_(False)
        return model

    def train(self, model: Decomposable, name: str) -> dict[str, Any]:
        settings = self.settings
        config = TrainConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=min(50, settings.steps // 3),
            schedule=settings.schedule,
            label_drop=0.1 if name == "label-drop-0.1" else 0.0,
            ema_decay=settings.ema_decay,
            checkpoints_total_limit=1,
            mixed_precision=settings.mixed_precision,
            seed=self.seed,
            **train_choices(settings),
        )
        result = train_cell(model, self.splits.train, config, self.folder / "runs" / name, self.show(name))
        return {"final_loss": result.final_loss, "seconds": result.seconds}

    def drawn(self, model: Decomposable, name: str, key: str) -> dict[str, float | None]:
        """The figures of one combination, and its picture; the noise is the same for all."""
        each = self.settings.samples
        asked = torch.arange(len(self.classes)).repeat_interleave(each)
        samples = sample(
            recombined_as(model, *COMBINATIONS[key]),
            asked,
            steps=self.settings.sampling_steps,
            scheduler=SAMPLER,
            clip=self.splits.clip,
            generator=torch.Generator().manual_seed(self.seed),
        )
        write_strip(self.picture(f"{name}/{key}"), self.splits.drawn(samples[: _SHOWN * each : each]))
        taken_for = [self.judge.predict(self.splits.drawn(part)) for part in samples.split(_AT_ONCE)]
        return judged(asked, torch.cat(taken_for), len(self.classes))

    @cached_property
    def splits(self) -> Splits:
        """The base classes' images."""
        return self.source.splits(self.classes)

    @cached_property
    def judge(self) -> Judge:
        """Of the base classes, which are many: there is one."""
        judge = self.source.judge(self.splits)
        assert judge is not None
        return judge


@torch.no_grad()
def recombined_as(model: Decomposable, components: str, row: str) -> Decomposable:
    """A copy in which class c draws with these components and this label row; "other" is those of class c + 1."""
    made = copy.deepcopy(model)
    tailors, labels = made.bank.tailors.rows, made.bank.labels.rows
    if components == "other":
        tailors.copy_(tailors.roll(-1, 0).clone())
    elif components == "none":
        tailors.zero_()
    if row == "other":
        labels.copy_(labels.roll(-1, 0).clone())
    elif row == "none":
        for name, table in made.label_tables.items():
            made.bank.labels.views(labels)[name].copy_(table.null_row.expand(len(labels), -1))
    return made


def judged(asked: Tensor, drawn: Tensor, classes: int) -> dict[str, float | None]:
    """What a judge saw in samples asked for as `asked` [N] and taken for `drawn` [N].

    own, other: shares taken for the class asked for, and for the next one. entropy (of the classes drawn, divided by
    log C: 1 is uniform), variance (of the C shares times C: 0 is uniform) and kurtosis (of the C shares, 3 for a
    normal; None where all are equal): of all samples, whoever was asked for.
    """
    share_C = torch.bincount(drawn, minlength=classes).double() / len(drawn)
    centred = share_C * classes - 1
    variance = float(centred.square().mean())
    positive = share_C[share_C > 0]
    return {
        "own": float((drawn == asked).double().mean()),
        "other": float((drawn == (asked + 1) % classes).double().mean()),
        "entropy": float(-(positive * positive.log()).sum()) / math.log(classes),
        "variance": variance,
        "kurtosis": float(centred.pow(4).mean()) / variance**2 if variance > 0 else None,
    }


def combination(key: str) -> str:
    """``no components, null row``."""
    components, row = COMBINATIONS[key]
    return f"{'no' if components == 'none' else components} components, {'null' if row == 'none' else row} row"
