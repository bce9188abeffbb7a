"""The ablate study: the pretrain study's KIND model with one thing changed at a time, everything else equal.

The base row is that model itself. Changed are: how a class's components are divided between learngene and tailor, with
N_G + N_T, and so the numbers for one class, kept; the class gate, whose absence in training means one tailor that all
classes share, so that nothing but label rows knows the class; what components begin as; the null class; label drop;
the targets; and whether classes that look alike share a tailor. Each is trained at the base row's learning rate, which
no variant but the base row has chosen for itself.

``svd`` begins with the best rank-N_G part of a dense model's matrices in the learngene and tailors of zeros: of the
dense twin at its first step, or as the pretrain study trained it, whose steps then come on top. Groups of classes are
measured: clusters (average linkage) of the mean features that the eyes have of training images; beside them stand
groups of the same sizes drawn by chance.

Shapes: C classes, D features.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import torch
from torch import Tensor

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.data.superclasses import merge
from kindgene.diffusion.sampler import sample
from kindgene.evaluation.cost import measure_cost
from kindgene.evaluation.features import Extractor, batches_of
from kindgene.evaluation.frechet import frechet_distance
from kindgene.files import StrPath
from kindgene.models.dit import DiT
from kindgene.studies.agnostic import judged
from kindgene.studies.cell import train_curve
from kindgene.studies.cells import Cells, Place, settings_of
from kindgene.studies.glyph_models import new_dense
from kindgene.studies.measure import SAMPLER, Eyes, shown
from kindgene.studies.pretraining import FINAL, Pretraining, one_class
from kindgene.studies.strips import write_strip
from kindgene.training.config import TrainConfig
from kindgene.transfer.kind import NullTailored, null_name

BASE, ONE_TAILOR, NULL_TAILOR, PAPER = "base", "one-tailor", "null-tailor", "paper"
SVD_FRESH, SVD_TRAINED = "svd-fresh", "svd-trained"
GROUPS, BY_CHANCE = "groups", "groups-by-chance"
RANKS, DROP = "ranks", "drop"
"""Begin the names ``ranks-N_G-N_T`` and ``drop-PROBABILITY``."""
NULL = "null"
"""Ends the name of a picture of what the null class draws."""


@dataclass(frozen=True, kw_only=True)
class AblateSettings:
    """What is varied; sizes and steps are the pretrain study's.

    `ranks`: pairs (N_G, N_T) beside the base row's; `drops`: probabilities that a sample loses its label; `groups`: how
    many tailors the classes share.
    """

    ranks: tuple[tuple[int, int], ...]
    groups: int
    drops: tuple[float, ...] = (0.0, 0.2)


SCALES: Mapping[str, AblateSettings] = MappingProxyType(
    {
        "tiny": AblateSettings(ranks=((3, 2),), groups=2, drops=(0.0,)),
        "mini": AblateSettings(ranks=((38, 1), (30, 9), (12, 27)), groups=8),
        "full": AblateSettings(ranks=((99, 1), (92, 8), (84, 16)), groups=50),
        "imagenet": AblateSettings(ranks=((171, 1), (164, 8), (156, 16)), groups=50),
        "imagenet-l4": AblateSettings(ranks=((228, 1), (220, 9), (212, 17)), groups=50),
    }
)


def ablate_settings(scale: str) -> AblateSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    return settings_of("ablate", SCALES, scale)


class Ablate(Cells):
    """A cell a variant, of its name. ``VARIANT/null.png`` are samples of the null class."""

    study = "ablate"
    settings: AblateSettings

    def __init__(self, folder: StrPath, **place: Unpack[Place]) -> None:
        super().__init__(folder, SCALES, **place)
        self.base = Pretraining(folder, **place)
        self.told["pretraining"] = self.base.told

    def names(self) -> tuple[str, ...]:
        ranks = [f"{RANKS}-{learngene}-{tailor}" for learngene, tailor in self.settings.ranks]
        drops = [f"{DROP}-{probability:g}" for probability in self.settings.drops]
        others = (ONE_TAILOR, SVD_FRESH, SVD_TRAINED, NULL_TAILOR, *drops, PAPER, GROUPS, BY_CHANCE)
        return (BASE, *ranks, *others)

    def compute(self, name: str) -> dict[str, Any]:
        model = self.new(name)
        cost = measure_cost(model)
        found: dict[str, Any] = {"parameters": cost.parameters, "macs": cost.macs, "one_class": for_one_class(model)}
        if name in (GROUPS, BY_CHANCE):
            found["groups"] = self.named(self.gate_map(name))
        if name == BASE:
            model, trained = self.base_model, self.base.get(f"decomposable/{FINAL}")
            found |= {key: trained[key] for key in ("rate", "validation", "seconds")}
        else:
            found |= self.train(model, name)
            if not found["validation"]:
                return {"refused": f"it diverged at a learning rate of {found['rate']:g}, the base row's"}
        found |= self.base.eyes.figures(model, self.picture(name))
        found["null"] = null_figures(model, self.base.eyes, self.picture(f"{name}/{NULL}"))
        shutil.rmtree(self.folder / "runs" / name, ignore_errors=True)
        return found

    def result(self) -> dict[str, Any]:
        names = self.names()
        return {
            "study": self.study,
            "scale": self.scale,
            "seed": self.seed,
            "settings": self.told,
            "measured_with": self.base.eyes.told(),
            "classes": list(self.base.classes),
            "variants": {name: self.get(name) for name in names},
            "pictures": {picture: str(self.picture(picture)) for name in names for picture in (name, f"{name}/{NULL}")},
        }

    def outlook(self) -> dict[str, Any]:
        return {**super().outlook(), "variants": list(self.names()), "pretraining": self.base.outlook()}

    def new(self, name: str) -> Decomposable:
        """A variant at its first step."""
        classes = self.base.classes
        generator = torch.Generator().manual_seed(self.seed)
        if name != NULL_TAILOR:
            made: Decomposable = make_decomposable(self._dense(name, classes), self.kind(name), generator=generator)
            return made
        named = (*classes, null_name(classes))
        model = make_decomposable(self._dense(name, named), self.kind(name), generator=generator)
        own = NullTailored(model.module, model.bank, model.gate, model.kind, model.label_argument)
        own.class_names = classes
        return own

    def kind(self, name: str) -> KindConfig:
        """How a variant is made decomposable: the base row's way with one thing changed."""
        sizes, classes = self.base.settings, len(self.base.classes)
        kind = KindConfig(
            num_classes=classes,
            learngene_rank=sizes.learngene_rank,
            tailor_rank=sizes.tailor_rank,
            targets="paper+adaln",
        )
        if name.startswith(f"{RANKS}-"):
            learngene, tailor = name.split("-")[1:]
            return replace(kind, learngene_rank=int(learngene), tailor_rank=int(tailor))
        if name in (ONE_TAILOR, GROUPS, BY_CHANCE):
            return replace(kind, gate_map=self.gate_map(name))
        if name in (SVD_FRESH, SVD_TRAINED):
            return replace(kind, init="svd")
        if name == NULL_TAILOR:
            return replace(kind, num_classes=classes + 1)
        return replace(kind, targets="paper") if name == PAPER else kind

    def config(self, name: str) -> TrainConfig:
        """How a variant is trained."""
        config = self.base.config(self.base.rate("decomposable"))
        if name.startswith(f"{DROP}-"):
            return replace(config, label_drop=float(name.removeprefix(f"{DROP}-")))
        return config

    def gate_map(self, name: str) -> list[int]:
        """The tailor of each class where classes share tailors."""
        classes = len(self.base.classes)
        if name == ONE_TAILOR:
            return [0] * classes
        groups = look_alikes(class_means(self.base.eyes), self.settings.groups)
        if name == GROUPS:
            return groups
        order = torch.randperm(classes, generator=torch.Generator().manual_seed(self.seed))
        return [groups[number] for number in order.tolist()]

    def named(self, gate_map: Sequence[int]) -> list[list[str]]:
        """The classes of each tailor."""
        return [
            [name for name, own in zip(self.base.classes, gate_map, strict=True) if own == tailor]
            for tailor in range(max(gate_map) + 1)
        ]

    def train(self, model: Decomposable, name: str) -> dict[str, Any]:
        """Trains; validation loss at the milestones, [] where it diverged."""
        config, splits, eyes = self.config(name), self.base.splits, self.base.eyes
        curve = train_curve(
            model,
            splits.train,
            config,
            self.base.settings.milestones,
            lambda trained: eyes.loss(trained, splits.validation),
            self.folder / "runs" / name,
            self.show(name),
        )
        return {"rate": config.learning_rate, "validation": curve.validation, "seconds": curve.seconds}

    @cached_property
    def base_model(self) -> Decomposable:
        """The pretrain study's, trained."""
        model = self.base.model("decomposable")
        assert isinstance(model, Decomposable)
        return model

    def _dense(self, name: str, classes: Sequence[str]) -> DiT:
        """What is made decomposable."""
        if name != SVD_TRAINED:
            return new_dense(classes, self.base.settings, self.seed)
        trained = self.base.model("dense")
        assert isinstance(trained, DiT)
        dense: DiT = trained.cpu()
        return dense


def for_one_class(model: Decomposable) -> int:
    """Numbers that a deployment for one class needs; a null tailor, which guidance uses, is among them."""
    null = sum(table.rows.shape[1] for table in model.bank.tables.values()) if isinstance(model, NullTailored) else 0
    return one_class(model) + null


def null_figures(model: Decomposable, eyes: Eyes, picture: Path) -> dict[str, float | None]:
    """What the null class draws: distance from all training images, and the entropy of the classes recognised.

    The entropy is divided by log C: 1 is uniform; None where nobody recognises.
    """
    classes, look = len(eyes.splits.train.class_names), eyes.look
    samples = sample(
        model,
        [None] * (classes * look.samples),
        steps=look.sampling_steps,
        scheduler=SAMPLER,
        clip=eyes.splits.clip,
        generator=torch.Generator().manual_seed(eyes.seed),
    )
    write_strip(picture, eyes.splits.drawn(samples[shown(classes, look.samples)]))
    seen, taken_for = eyes.looked_at(eyes.splits.drawn(part) for part in samples.split(2 * eyes.at_once))
    entropy = None if eyes.judge is None else judged(taken_for, taken_for, classes)["entropy"]
    return {"fd": frechet_distance(eyes.reference, seen), "entropy": entropy}


def class_means(eyes: Eyes) -> Tensor:
    """The mean features of each class's training images, float64 [C, D]."""
    data, extractor = eyes.splits.seen[0], eyes.extractor
    return _sums(data, extractor, eyes.at_once) / torch.bincount(data.labels).unsqueeze(1)


def _sums(data: Any, extractor: Extractor, at_once: int) -> Tensor:
    sums = torch.zeros(len(data.class_names), extractor.dimension, dtype=torch.float64)
    for pixels, numbers in batches_of(data, at_once):
        sums.index_add_(0, data.labels[numbers], extractor(pixels).pooled.double().cpu())
    return sums


def look_alikes(means_CD: Tensor, groups: int) -> list[int]:
    """The group of each class: so many clusters (average linkage) by the correlation of their mean features."""
    centred = means_CD - means_CD.mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
    clusters = merge(range(len(means_CD)), (unit @ unit.T).clamp(-1, 1).numpy(), groups)
    found = [0] * len(means_CD)
    for group, members in enumerate(clusters):
        for member in members:
            found[member] = group
    return found
