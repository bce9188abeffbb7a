"""The agnostic study: is the learngene class-agnostic, and is it the components or the label row that carry the class?

KIND says that the learngene holds what all classes share and a tailor what one class needs. A learngene that draws all
classes alike proves little where the null class trained it as an unconditional model: so the primary model is trained
with label drop 0, in which every step of the learngene had a class's tailor beside it. On it, components {own, another
class's, none} and label row {own, another class's, null} are put together in all nine ways, and an independent
classifier says what is drawn. Beside it: the same with label drop 0.1, and the control N_T = 0, whose classes have
label rows alone.

Shapes: C classes, N samples (N / C of each class).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kindgene.core.decomposable import Decomposable
from kindgene.data.glyphs import load_glyphs
from kindgene.data.superclasses import superclasses
from kindgene.diffusion.sampler import sample
from kindgene.evaluation.classifier import Classifier, train_classifier
from kindgene.files import StrPath
from kindgene.progress import NoProgress, Progress
from kindgene.studies.cell import train_cell
from kindgene.studies.glyph_models import new_decomposable
from kindgene.training.config import TrainConfig

ShowProgress = Callable[[str], Progress]

PARTS = ("own", "other", "none")
"""Whose tailor components a sample of a class uses; whose label row likewise, "none" being the null row."""
MODELS: Mapping[str, str] = MappingProxyType(
    {
        "label drop 0": "primary: the learngene was never trained alone",
        "label drop 0.1": "the null class trains the learngene alone in a tenth of all samples",
        "label rows only": "control N_T = 0, label drop 0: tailors are zero and stay so",
    }
)


@dataclass(frozen=True, kw_only=True)
class AgnosticSettings:
    """Sizes of the study; of each class: `per_class` images train, `held_out` test the classifier, `samples` drawn."""

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
            steps=20_000,
            batch_size=256,
            learning_rate=5e-4,
            ema_decay=0.999,
        ),
    }
)


def agnostic_settings(scale: str) -> AgnosticSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    if scale not in SCALES:
        raise ValueError(f"the agnostic study has no scale {scale!r}; there is {', '.join(SCALES)}")
    return SCALES[scale]


def run_agnostic(
    out: str | Path,
    *,
    seed: int = 0,
    scale: str = "mini",
    progress: ShowProgress | None = None,
    cache: StrPath | None = None,
) -> dict[str, Any]:
    """Trains the three models under `out`, draws from each in all nine ways and judges; plain data, and pictures.

    ``models``: name -> cells, (components, label row) -> `judged` figures; ``pictures``: name -> cell -> [N', 1, H, W],
    one sample of each of up to eight classes.
    """
    settings = agnostic_settings(scale)
    folder = Path(out) / f"{scale}-seed{seed}"
    names = tuple(group.name for group in superclasses() if group.group == "base")[: settings.classes]
    size = settings.image_size
    train = load_glyphs("train", names, size, per_class=settings.per_class, cache=cache)
    held_out = load_glyphs("test", names, size, per_class=settings.held_out, cache=cache)
    classifier = train_classifier(train, held_out, seed=0)
    models: dict[str, Any] = {}
    pictures: dict[str, dict[str, Tensor]] = {}
    for name in MODELS:
        model = new_model(names, settings, seed, label_rows_only=name == "label rows only")
        config = TrainConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_steps=min(50, settings.steps // 3),
            schedule="cosine",
            label_drop=0.1 if name == "label drop 0.1" else 0.0,
            ema_decay=settings.ema_decay,
            checkpoint_every=max(1, settings.steps // 4),
            checkpoints_total_limit=1,
            seed=seed,
        )
        shown = progress(name) if progress is not None else NoProgress()
        result = train_cell(model, train, config, folder / name.replace(" ", "-"), shown)
        cells, pictures[name] = _cells(model, classifier, settings, seed)
        models[name] = {"final_loss": result.final_loss, "seconds": result.seconds, "cells": cells}
    return {
        "study": "agnostic",
        "scale": scale,
        "seed": seed,
        "settings": asdict(settings),
        "classes": list(names),
        "classifier_accuracy": classifier.accuracy,
        "real": judged(held_out.labels, classifier.predict(held_out.images), len(names)),
        "models": models,
        "pictures": pictures,
    }


def new_model(names: Sequence[str], settings: AgnosticSettings, seed: int, *, label_rows_only: bool) -> Decomposable:
    """A decomposable DiT at its first step; with `label_rows_only` its tailors are zero and are not trained."""
    model = new_decomposable(names, settings, seed)
    if label_rows_only:
        with torch.no_grad():
            model.bank.tailors.rows.zero_()
        model.bank.tailors.rows.requires_grad_(False)
    return model


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
    """What a classifier saw in samples asked for as `asked` [N] and taken for `drawn` [N].

    own, other: shares taken for the class asked for, and for the next one. entropy (of the classes drawn, divided by
    log C: 1 is uniform), variance (of the C shares times C: 0 is uniform) and kurtosis (of the C shares, 3 for a
    normal; None where all are equal): of the whole cell, whoever was asked for.
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


def _cells(
    model: Decomposable, classifier: Classifier, settings: AgnosticSettings, seed: int
) -> tuple[dict[str, dict[str, float | None]], dict[str, Tensor]]:
    """Figures and a picture of each of the nine cells, drawn from the same noise."""
    classes = model.num_classes
    asked = torch.arange(classes).repeat_interleave(settings.samples)
    chosen = torch.arange(min(8, classes)) * settings.samples
    figures, pictures = {}, {}
    for components in PARTS:
        for row in PARTS:
            images = sample(
                recombined_as(model, components, row),
                asked,
                steps=settings.sampling_steps,
                clip=1.0,
                generator=torch.Generator().manual_seed(seed),
            )
            key = f"{components} components, {row if row != 'none' else 'null'} row"
            figures[key] = judged(asked, classifier.predict(images), classes)
            pictures[key] = images[chosen]
    return figures, pictures
