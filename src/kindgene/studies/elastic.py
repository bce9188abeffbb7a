"""The elastic study: does one pool serve every budget, and what makes it do so?

On glyphs, quality (denoising loss of test images at fixed noise) against parameters of models for some of the base
classes, from

- a plain pool, its components dropped by their measured worth (`Pool.plan` with calibration data),
- an elastic pool (a share of the learngene drawn in each training step), treated the same,
- the elastic model's prefixes as they were trained, and the plain pool's, canonical: one rank share for every matrix,
- truncated SVDs of the dense twin: one rank share for every matrix, and planned like the pools,
- small dense models, each trained from scratch on just the deployed classes, for as many steps.

Every model is one training at one learning rate, so nothing is chosen by the figures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Unpack

import torch
from torch import nn

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.data.dataset import Dataset
from kindgene.diffusion.path import DiffusionPath
from kindgene.evaluation.denoising import calibration_batches, validation_loss
from kindgene.files import StrPath
from kindgene.models.dit import DiT
from kindgene.pool.budget import ImpossibleBudgetError
from kindgene.pool.pool import Pool
from kindgene.studies.cell import best_device, train_cell
from kindgene.studies.cells import Cells, Place, settings_of
from kindgene.studies.glyph_models import new_decomposable, new_dense
from kindgene.studies.source import Glyphs, Source, Splits
from kindgene.training.config import TrainConfig

CURVES: Mapping[str, str] = MappingProxyType(
    {
        "plain-planned": "plain pool, planned",
        "elastic-planned": "elastic pool, planned",
        "plain-prefixes": "plain pool, canonical prefixes",
        "elastic-prefixes": "elastic model, its own prefixes",
        "svd-prefixes": "SVD of the dense twin, one rank share",
        "svd-planned": "SVD of the dense twin, planned",
        "small-dense": "small dense models, trained anew",
    }
)
MODELS = ("plain", "elastic", "dense")
Points = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class ElasticSettings:
    """Sizes of the study. `budgets` and `prefixes` are shares of the whole model's parameters and learngene ranks."""

    base_classes: int
    deployed_classes: int
    per_class: int
    held_out: int
    image_size: int = 16
    patch_size: int = 2
    width: int
    depth: int
    heads: int
    learngene_rank: int
    tailor_rank: int
    steps: int
    batch_size: int
    learning_rate: float = 2e-3
    dense_learning_rate: float = 2e-3
    ema_decay: float = 0.995
    elastic_shares: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, *(1.0,) * 7)
    budgets: tuple[float, ...] = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
    prefixes: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.125)
    dense_widths: tuple[int, ...]
    calibration_batches: int = 64
    draws: int = 16
    mixed_precision: Literal["no", "bf16"] = "no"


SCALES: Mapping[str, ElasticSettings] = MappingProxyType(
    {
        "tiny": ElasticSettings(
            base_classes=4,
            deployed_classes=2,
            per_class=4,
            held_out=2,
            width=16,
            depth=1,
            heads=2,
            learngene_rank=4,
            tailor_rank=1,
            steps=3,
            batch_size=4,
            budgets=(1.0, 0.95),
            prefixes=(1.0, 0.5),
            dense_widths=(8,),
            calibration_batches=2,
            draws=2,
        ),
        "mini": ElasticSettings(
            base_classes=24,
            deployed_classes=6,
            per_class=200,
            held_out=20,
            patch_size=4,
            width=128,
            depth=6,
            heads=4,
            learngene_rank=32,
            tailor_rank=3,
            steps=1000,
            batch_size=64,
            dense_widths=(80, 64, 48),
        ),
        "full": ElasticSettings(
            base_classes=150,
            deployed_classes=8,
            per_class=200,
            held_out=50,
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
            dense_learning_rate=6e-4,
            ema_decay=0.998,
            dense_widths=(240, 192, 144),
            calibration_batches=32,
            draws=8,
            mixed_precision="bf16",
        ),
    }
)


def elastic_settings(scale: str) -> ElasticSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    return settings_of("elastic", SCALES, scale)


class Elastic(Cells):
    """Trainings ``model/plain``, ``model/elastic``, ``model/dense`` and ``small/WIDTH``; measured, ``curve/NAME``."""

    study = "elastic"
    settings: ElasticSettings

    def __init__(self, folder: StrPath, **place: Unpack[Place]) -> None:
        super().__init__(folder, SCALES, **place)
        sizes = self.settings.image_size, self.settings.per_class, self.settings.held_out
        self.source: Source = place.get("source") or Glyphs(*sizes, cache=self.cache)
        self.base = self.source.base[: self.settings.base_classes]
        self.deployed = self.base[: self.settings.deployed_classes]

    def names(self) -> tuple[str, ...]:
        models = [f"model/{name}" for name in MODELS]
        small = [f"small/{width}" for width in self.settings.dense_widths]
        return (*models, *small, *(f"curve/{name}" for name in CURVES))

    def compute(self, name: str) -> dict[str, Any]:
        kind, _, rest = name.partition("/")
        if kind == "curve":
            return {"points": self.curve(rest)}
        if kind == "model":
            _, seconds = self.trained(rest)
            return {"seconds": seconds}
        model = new_dense(self.deployed, replace(self.settings, width=int(rest)), self.seed)
        own = self.splits.train.subset(self.deployed)
        seconds = self.train(model, own, name, self.settings.dense_learning_rate)
        return {**self.point(sum(value.numel() for value in model.parameters()), model), "seconds": seconds}

    def result(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "scale": self.scale,
            "seed": self.seed,
            "settings": self.told,
            "measured_with": {"weights": "EMA", "loss_draws": self.settings.draws},
            "base_classes": list(self.base),
            "deployed_classes": list(self.deployed),
            "curves": {name: self.get(f"curve/{name}")["points"] for name in CURVES},
            "seconds": {name: self.get(f"model/{name}")["seconds"] for name in MODELS},
        }

    def curve(self, name: str) -> Points:
        """The points of a way of making small models."""
        ways: Mapping[str, Callable[[], Points]] = {
            "plain-planned": lambda: self.planned(self.pool("plain")),
            "elastic-planned": lambda: self.planned(self.pool("elastic")),
            "plain-prefixes": lambda: self.prefixes(self.pool("plain").to_model()),
            "elastic-prefixes": lambda: self.prefixes(self.decomposable("elastic")),
            "svd-prefixes": lambda: self.truncated(self.dense()),
            "svd-planned": lambda: self.planned(self.as_pool(self.dense()), wide=True),
            "small-dense": self.small_dense,
        }
        return ways[name]()

    def trained(self, name: str) -> tuple[DiT | Decomposable, float]:
        """A model of all base classes at the end of its training; seconds spent in steps."""
        settings = self.settings
        if name == "dense":
            dense = new_dense(self.base, settings, self.seed)
            return dense, self.train(dense, self.splits.train, f"model/{name}", settings.dense_learning_rate)
        model = new_decomposable(self.base, settings, self.seed)
        shares = settings.elastic_shares if name == "elastic" else ()
        return model, self.train(model, self.splits.train, f"model/{name}", settings.learning_rate, shares)

    def decomposable(self, name: str) -> Decomposable:
        """What was trained, on the CPU, where pools are made."""
        self.get(f"model/{name}")
        model, _ = self.trained(name)
        assert isinstance(model, Decomposable)
        return model.cpu()

    def dense(self) -> DiT:
        self.get("model/dense")
        model, _ = self.trained("dense")
        assert isinstance(model, DiT)
        placed: DiT = model.cpu()
        return placed

    def pool(self, name: str) -> Pool:
        return self.decomposable(name).decompose(self.base)

    def planned(self, pool: Pool, *, wide: bool = False) -> Points:
        """Models of the deployed classes under each budget; `wide`: a larger pool, whose smaller shares matter."""
        path = DiffusionPath.of(pool.config.backbone_config)
        own, count = self.splits.train.subset(self.deployed), self.settings.calibration_batches
        batches = list(calibration_batches(own, path, count=count, seed=self.seed))
        whole = pool.plan(self.deployed, calibration=batches).cost.parameters
        shares = self.settings.budgets if not wide else [share**2 for share in self.settings.budgets]
        curve: Points = []
        for share in shares:
            try:
                plan = pool.plan(self.deployed, calibration=batches, max_parameters=math.floor(share * whole))
            except ImpossibleBudgetError:
                break
            curve.append(self.point(plan.cost.parameters, pool.recombine(plan=plan)))
        return curve

    def prefixes(self, model: Decomposable) -> Points:
        """One share of every matrix's learngene for all of the base classes' model, counted for the deployed ones."""
        curve: Points = []
        ids = torch.tensor([model.class_names.index(name) for name in self.deployed])  # type: ignore[union-attr]
        for share in self.settings.prefixes:
            numbers = self._prefix_parameters(model, share)
            curve.append(self.point(numbers, _Prefix(model, share, ids)))
        return curve

    def truncated(self, dense: DiT) -> Points:
        """Every target of the dense twin as its truncated SVD of one share of its width, thin where that is less."""
        curve: Points = []
        for share in (*self.settings.prefixes[1:], self.settings.prefixes[-1] / 2):
            kind = KindConfig(
                num_classes=len(self.base),
                learngene_rank=share / 2,  # a pair of rank r costs less than a square matrix below half its width
                tailor_rank=1,
                targets="paper+adaln",
                gate_map=[0] * len(self.base),
                init="svd",
            )
            pool = make_decomposable(copy.deepcopy(dense), kind).decompose(self.base)
            plan = pool.plan(self.deployed)
            curve.append(self.point(plan.cost.parameters, pool.recombine(plan=plan)))
        return curve

    def as_pool(self, dense: DiT) -> Pool:
        """The dense twin as a pool: the SVD of every target in the learngene, one tailor of zeros for all classes."""
        kind = KindConfig(
            num_classes=len(self.base),
            learngene_rank=self.settings.width,
            tailor_rank=1,
            targets="paper+adaln",
            gate_map=[0] * len(self.base),
            init="svd",
        )
        return make_decomposable(copy.deepcopy(dense), kind).decompose(self.base)

    def small_dense(self) -> Points:
        found = [self.get(f"small/{width}") for width in self.settings.dense_widths]
        return [{key: one[key] for key in ("parameters", "loss")} for one in found]

    def point(self, parameters: int, model: nn.Module) -> dict[str, float]:
        """What a model of the deployed classes loses on their test images."""
        path = DiffusionPath.of(model)
        placed, test = model.to(best_device()), self.splits.test.subset(self.deployed)
        loss = validation_loss(placed, test, path=path, draws=self.settings.draws, seed=self.seed)
        return {"parameters": parameters, "loss": loss}

    def _prefix_parameters(self, model: Decomposable, share: float) -> int:
        """Numbers of a model of the deployed classes whose learngene matrices keep that share of their components."""
        own = sum(value.numel() for value in model.module.parameters())
        for layer in model.layers.values():
            dropped = sum(rank - math.ceil(share * rank) for rank in layer.component_ranks)
            own -= dropped * (layer.in_features + layer.part_features + 1)
        return own + len(self.deployed) * sum(table.rows.shape[1] for table in model.bank.tables.values())

    def train(
        self, model: nn.Module, data: Dataset, run: str, learning_rate: float, shares: tuple[float, ...] = ()
    ) -> float:
        """Trains, or takes over what is trained; seconds spent in steps."""
        settings = self.settings
        config = TrainConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=learning_rate,
            warmup_steps=min(100, settings.steps // 3),
            schedule="cosine",
            ema_decay=settings.ema_decay,
            elastic_shares=shares,
            mixed_precision=settings.mixed_precision,
            seed=self.seed,
            checkpoint_every=max(1, settings.steps // 10),
            checkpoints_total_limit=1,
        )
        return train_cell(model, data, config, self.folder / "runs" / run, self.show(run)).seconds

    @cached_property
    def splits(self) -> Splits:
        """The base classes' images."""
        return self.source.splits(self.base)


class _Prefix(nn.Module):
    """A decomposable model with a share of its learngene, for some of its classes: `ids` are theirs in the model."""

    def __init__(self, model: Decomposable, share: float, ids: torch.Tensor) -> None:
        super().__init__()
        self.model, self.share, self.ids = model, share, nn.Buffer(ids, persistent=False)

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> Any:
        return self.model(x, t, self.ids[y], learngene_share=self.share)
