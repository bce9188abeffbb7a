"""The elastic study: does one pool serve every budget, and what makes it do so?

On glyphs, quality (validation loss at fixed noise) against parameters of models for some of the base classes, from

- a plain pool, its components dropped by their measured worth (`Pool.plan` with calibration data),
- an elastic pool (a share of the learngene drawn in each training step), treated the same,
- the elastic model's prefixes as they were trained, and the plain pool's, canonical: one rank share for every matrix,
- truncated SVDs of the dense twin: one rank share for every matrix, and planned like the pools,
- small dense models, each trained from scratch on just the deployed classes, for as many steps.

Trainings are cells: interrupted, the study goes on where it was.
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

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.data.glyphs import load_glyphs
from kindgene.data.superclasses import superclasses
from kindgene.diffusion.path import DiffusionPath
from kindgene.evaluation.denoising import calibration_batches, validation_loss
from kindgene.files import StrPath
from kindgene.models.dit import DiT
from kindgene.pool.budget import ImpossibleBudgetError
from kindgene.pool.pool import Pool
from kindgene.progress import NoProgress, Progress
from kindgene.studies.cell import train_cell
from kindgene.training.config import TrainConfig
from kindgene.training.trainer import TrainResult

ShowProgress = Callable[[str], Progress]
Curve = list[dict[str, float]]


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
    }
)


def elastic_settings(scale: str) -> ElasticSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    if scale not in SCALES:
        raise ValueError(f"the elastic study has no scale {scale!r}; there is {', '.join(SCALES)}")
    return SCALES[scale]


def run_elastic(
    out: str | Path,
    *,
    seed: int = 0,
    scale: str = "mini",
    progress: ShowProgress | None = None,
    cache: StrPath | None = None,
) -> dict[str, Any]:
    """Runs the study's cells under `out` and returns its curves: name -> points {parameters, loss}."""
    settings = elastic_settings(scale)
    cells = _Cells(Path(out) / f"{scale}-seed{seed}", settings, seed, progress or (lambda cell: NoProgress()), cache)
    plain, plain_run = cells.decomposable("plain", ())
    elastic, elastic_run = cells.decomposable("elastic", settings.elastic_shares)
    dense, dense_run = cells.dense("dense twin", settings.width, cells.base, cells.train)
    curves = {
        "plain pool, planned": cells.planned(plain.decompose()),
        "elastic pool, planned": cells.planned(elastic.decompose()),
        "plain pool, canonical prefixes": cells.prefixes(plain.decompose().to_model()),
        "elastic model, its own prefixes": cells.prefixes(elastic),
        "SVD of the dense twin, one rank share": cells.truncated(dense),
        "SVD of the dense twin, planned": cells.planned(cells.as_pool(dense), wide=True),
        "small dense models, trained anew": cells.small_dense(),
    }
    runs = {"plain": plain_run, "elastic": elastic_run, "dense twin": dense_run}
    return {
        "study": "elastic",
        "scale": scale,
        "seed": seed,
        "settings": asdict(settings),
        "base_classes": list(cells.base),
        "deployed_classes": list(cells.deployed),
        "measure": "mean squared error of v at fixed noise and timesteps, held-out glyphs of the deployed classes",
        "curves": curves,
        "seconds": {name: run.seconds for name, run in runs.items()},
    }


class _Cells:
    """The study's data, trainings and measurements."""

    def __init__(
        self, out: Path, settings: ElasticSettings, seed: int, show: ShowProgress, cache: StrPath | None
    ) -> None:
        self.out, self.settings, self.seed, self.show = out, settings, seed, show
        names = [superclass.name for superclass in superclasses() if superclass.group == "base"]
        self.base = tuple(names[: settings.base_classes])
        self.deployed = self.base[: settings.deployed_classes]
        size = settings.image_size
        self.train = load_glyphs("train", self.base, size, per_class=settings.per_class, cache=cache)
        self.own = self.train.subset(self.deployed)
        self.held_out = load_glyphs("validation", self.deployed, size, per_class=settings.held_out, cache=cache)

    def decomposable(self, name: str, shares: tuple[float, ...]) -> tuple[Decomposable, TrainResult]:
        settings = self.settings
        kind = KindConfig(
            num_classes=len(self.base),
            learngene_rank=settings.learngene_rank,
            tailor_rank=settings.tailor_rank,
            targets="paper+adaln",
        )
        generator = torch.Generator().manual_seed(self.seed)
        model = make_decomposable(self._new_dense(settings.width, self.base), kind, generator=generator)
        config = self._config(settings.learning_rate, shares)
        return model, train_cell(model, self.train, config, self.out / name, self.show(name))

    def dense(self, name: str, width: int, classes: Sequence[str], data: ArrayDataset) -> tuple[DiT, TrainResult]:
        model = self._new_dense(width, classes)
        config = self._config(self.settings.dense_learning_rate, ())
        return model, train_cell(model, data, config, self.out / name.replace(" ", "-"), self.show(name))

    def planned(self, pool: Pool, *, wide: bool = False) -> Curve:
        """Models of the deployed classes under each budget; `wide`: a larger pool, whose smaller shares matter."""
        path = DiffusionPath.of(pool.config.backbone_config)
        batches = list(calibration_batches(self.own, path, count=self.settings.calibration_batches, seed=self.seed))
        whole = pool.plan(self.deployed, calibration=batches).cost.parameters
        shares = self.settings.budgets if not wide else [share**2 for share in self.settings.budgets]
        curve: Curve = []
        for share in shares:
            try:
                plan = pool.plan(self.deployed, calibration=batches, max_parameters=math.floor(share * whole))
            except ImpossibleBudgetError:
                break
            curve.append(self._point(plan.cost.parameters, pool.recombine(plan=plan)))
        return curve

    def prefixes(self, model: Decomposable) -> Curve:
        """One share of every matrix's learngene for all of the base classes' model, counted for the deployed ones."""
        curve: Curve = []
        ids = torch.tensor([model.class_names.index(name) for name in self.deployed])  # type: ignore[union-attr]
        for share in self.settings.prefixes:
            numbers = self._prefix_parameters(model, share)
            curve.append(self._point(numbers, _Prefix(model, share, ids)))
        return curve

    def truncated(self, dense: DiT) -> Curve:
        """Every target of the dense twin as its truncated SVD of one share of its width, thin where that is less."""
        curve: Curve = []
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
            curve.append(self._point(plan.cost.parameters, pool.recombine(plan=plan)))
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

    def small_dense(self) -> Curve:
        curve: Curve = []
        for width in self.settings.dense_widths:
            model, _ = self.dense(f"dense {width}", width, self.deployed, self.own)
            curve.append(self._point(sum(value.numel() for value in model.parameters()), model))
        return curve

    def _point(self, parameters: int, model: Any) -> dict[str, float]:
        path = DiffusionPath.of(model)
        loss = validation_loss(model, self.held_out, path=path, draws=self.settings.draws, seed=self.seed)
        return {"parameters": parameters, "loss": loss}

    def _prefix_parameters(self, model: Decomposable, share: float) -> int:
        """Numbers of a model of the deployed classes whose learngene matrices keep that share of their components."""
        own = sum(value.numel() for value in model.module.parameters())
        for layer in model.layers.values():
            dropped = sum(rank - math.ceil(share * rank) for rank in layer.component_ranks)
            own -= dropped * (layer.in_features + layer.part_features + 1)
        return own + len(self.deployed) * sum(table.rows.shape[1] for table in model.bank.tables.values())

    def _config(self, learning_rate: float, shares: tuple[float, ...]) -> TrainConfig:
        settings = self.settings
        return TrainConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=learning_rate,
            warmup_steps=min(100, settings.steps // 3),
            schedule="cosine",
            ema_decay=settings.ema_decay,
            elastic_shares=shares,
            seed=self.seed,
            checkpoint_every=250,
            checkpoints_total_limit=1,
        )

    def _new_dense(self, width: int, classes: Sequence[str]) -> DiT:
        settings = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            dense: DiT = DiT(
                input_size=settings.image_size,
                patch_size=settings.patch_size,
                in_channels=1,
                hidden_size=width,
                depth=settings.depth,
                num_heads=settings.heads,
                num_classes=len(classes),
                class_names=list(classes),
                learn_sigma=False,
                time_frequencies="diffusers",
                prediction="v",
            )
        return dense


class _Prefix(torch.nn.Module):
    """A decomposable model with a share of its learngene, for some of its classes: `ids` are theirs in the model."""

    def __init__(self, model: Decomposable, share: float, ids: torch.Tensor) -> None:
        super().__init__()
        self.model, self.share, self.ids = model, share, ids

    @property
    def config(self) -> Any:
        return self.model.config

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> Any:
        return self.model(x, t, self.ids[y], learngene_share=self.share)
