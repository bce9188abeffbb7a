"""The novel and the shift study: what is carried over to new classes, by which method, and how well it does.

On glyphs a decomposable and a dense model are pre-trained on the base classes for as many steps. Then every strategy of
`kindgene.transfer` is trained on the same new data, with the same batches, noise and number of steps, each at the
learning rate of a grid of three that is best on validation images; the figures are of test images. Those whose size can
be chosen run twice: at their usual rank, and at the rank that trains as many numbers as KIND.

``novel``: classes of the same kind that pre-training has not seen. ``shift``: far domains (digits, phantoms, stars,
textures), where carrying everything over may hurt.

Every training and its figures are a cell, kept in a file: interrupted, or cut into several commands, a study goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from kindgene.core.decomposable import Decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.data.glyphs import Split, load_glyphs
from kindgene.data.shifts import load_shift
from kindgene.data.superclasses import superclasses
from kindgene.diffusion.path import DiffusionPath
from kindgene.evaluation.cost import measure_cost
from kindgene.evaluation.denoising import noised_batches, validation_loss
from kindgene.files import StrPath
from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool
from kindgene.progress import NoProgress, Progress
from kindgene.studies.cell import train_cell
from kindgene.studies.glyph_models import new_decomposable, new_dense
from kindgene.studies.kept import kept
from kindgene.training.config import TrainConfig
from kindgene.training.run import load_checkpoint_model
from kindgene.transfer.budget import rank_for_budget
from kindgene.transfer.strategies import STRATEGIES, Start, Transfer, make_transfer

ShowProgress = Callable[[str], Progress]

EQUAL = "equal"
"""Ends the name of a strategy at the rank that trains as many numbers as KIND: ``lora-equal``."""
RATED = ("lora", "dora", "pissa", "loha", "oft", "class_lora")
"""Strategies that run at KIND's number of trained numbers too."""
RATES: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "kind": (3e-3, 1e-2, 3e-2),
        "kind_null_tailor": (3e-3, 1e-2, 3e-2),
        "class_lora": (3e-3, 1e-2, 3e-2),
        "linear_probe": (3e-3, 1e-2, 3e-2),
        "lora": (3e-3, 1e-2, 3e-2),
        "dora": (3e-3, 1e-2, 3e-2),
        "pissa": (1e-3, 3e-3, 1e-2),
        "loha": (3e-3, 1e-2, 3e-2),
        "oft": (3e-3, 1e-2, 3e-2),
        "svdiff": (1e-2, 4e-2, 1.6e-1),
        "kind_everything": (1e-3, 3e-3, 1e-2),
        "full_finetune": (1e-3, 3e-3, 1e-2),
        "scratch": (1e-3, 3e-3, 1e-2),
        "heur_lg": (1e-3, 3e-3, 1e-2),
        "auto_lg": (1e-3, 3e-3, 1e-2),
    }
)
"""The three learning rates of each strategy (ours): few numbers take larger ones."""


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """Sizes of both studies. `tasks` of `task_classes` novel classes each; `shifts`: far sets, of `shift_classes`.

    `milestones`: shares of the transfer's steps after which validation loss is measured; the last is 1.
    """

    base_classes: int
    tasks: int
    task_classes: int
    shifts: tuple[str, ...]
    shift_classes: int
    per_class: int
    held_out: int
    image_size: int = 16
    patch_size: int
    width: int
    depth: int
    heads: int
    learngene_rank: int
    tailor_rank: int
    pretraining_steps: int
    steps: int
    batch_size: int
    learning_rate: float = 2e-3
    ema_decay: float = 0.99
    milestones: tuple[float, ...] = (0.25, 0.5, 1.0)
    draws: int = 8
    strategies: tuple[str, ...] = tuple(STRATEGIES)


SCALES: Mapping[str, TransferSettings] = MappingProxyType(
    {
        "tiny": TransferSettings(
            base_classes=3,
            tasks=1,
            task_classes=2,
            shifts=("stars",),
            shift_classes=2,
            per_class=6,
            held_out=2,
            patch_size=4,
            width=16,
            depth=2,
            heads=2,
            learngene_rank=4,
            tailor_rank=1,
            pretraining_steps=3,
            steps=2,
            batch_size=4,
            milestones=(0.5, 1.0),
            draws=1,
        ),
        "mini": TransferSettings(
            base_classes=24,
            tasks=1,
            task_classes=8,
            shifts=("digits", "phantoms", "stars", "textures"),
            shift_classes=4,
            per_class=200,
            held_out=20,
            patch_size=4,
            width=96,
            depth=4,
            heads=4,
            learngene_rank=24,
            tailor_rank=4,
            pretraining_steps=3000,
            steps=200,
            batch_size=64,
        ),
        "full": TransferSettings(
            base_classes=150,
            tasks=3,
            task_classes=16,
            shifts=("digits", "phantoms", "stars", "textures"),
            shift_classes=6,
            per_class=200,
            held_out=20,
            image_size=32,
            patch_size=4,
            width=384,
            depth=12,
            heads=6,
            learngene_rank=96,
            tailor_rank=4,
            pretraining_steps=20_000,
            steps=1000,
            batch_size=256,
            learning_rate=5e-4,
            ema_decay=0.995,
        ),
    }
)


def transfer_settings(scale: str) -> TransferSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    if scale not in SCALES:
        raise ValueError(f"the transfer studies have no scale {scale!r}; there is {', '.join(SCALES)}")
    return SCALES[scale]


def run_transfers(
    out: str | Path,
    study: str,
    *,
    seed: int = 0,
    scale: str = "mini",
    progress: ShowProgress | None = None,
    cache: StrPath | None = None,
) -> dict[str, Any]:
    """Runs the cells of ``"novel"`` or ``"shift"`` under `out`; plain data.

    ``tasks``: name of the data -> row (a strategy, at its usual rank or ``-equal``) -> figures at its best learning
    rate, or the reason why it could not be; ``pretraining``: losses of both models.
    """
    settings = transfer_settings(scale)
    cells = _Cells(Path(out) / f"{scale}-seed{seed}", settings, seed, progress or (lambda cell: NoProgress()), cache)
    tasks = cells.novel_tasks() if study == "novel" else cells.shift_tasks()
    return {
        "study": study,
        "scale": scale,
        "seed": seed,
        "settings": plain(settings),
        "pretraining": cells.pretraining(),
        "tasks": {name: cells.task(name, data) for name, data in tasks.items()},
    }


def plain(settings: TransferSettings) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return found


@dataclass(frozen=True)
class Splits:
    """Images to train on, to choose by, and to report."""

    train: ArrayDataset
    validation: ArrayDataset
    test: ArrayDataset


class _Cells:
    """The study's data, trainings and measurements."""

    def __init__(
        self, out: Path, settings: TransferSettings, seed: int, show: ShowProgress, cache: StrPath | None
    ) -> None:
        self.out, self.settings, self.seed, self.show, self.cache = out, settings, seed, show, cache
        groups = superclasses()
        self.base = tuple(group.name for group in groups if group.group == "base")[: settings.base_classes]
        self.novel = tuple(group.name for group in groups if group.group == "novel")
        self._start: Start | None = None

    def pretraining(self) -> dict[str, Any]:
        """Both models, trained where they are not yet; their validation losses on the base classes."""
        data = self._glyphs(self.base)
        losses = {}
        for name in ("decomposable", "dense"):

            def compute(name: str = name) -> dict[str, Any]:
                model = self._new(dense=name == "dense")
                result = train_cell(model, data.train, self._base_config(), self.out / name, self.show(name))
                loss = validation_loss(model, data.validation, draws=self.settings.draws, seed=self.seed)
                return {"validation_loss": loss, "seconds": result.seconds}

            losses[name] = kept(self.out / "cells" / f"{name}.json", plain(self.settings), compute)
        return losses

    def novel_tasks(self) -> dict[str, Splits]:
        """Novel glyph classes, so many a task, evenly spaced."""
        count, size = self.settings.tasks, self.settings.task_classes
        stride = len(self.novel) // (count * size)
        chosen = self.novel[:: max(1, stride)][: count * size]
        return {f"novel {task}": self._glyphs(chosen[task * size : (task + 1) * size]) for task in range(count)}

    def shift_tasks(self) -> dict[str, Splits]:
        """The first classes of each far set."""
        tasks = {}
        for shift in self.settings.shifts:
            parts = {}
            for split, count in self._sizes().items():
                whole = load_shift(shift, split, self.settings.image_size, per_class=count)  # type: ignore[arg-type]
                parts[split] = whole.subset(whole.class_names[: self.settings.shift_classes])
            tasks[shift] = Splits(**parts)
        return tasks

    def task(self, name: str, data: Splits) -> dict[str, Any]:
        """Every strategy on one task: the figures of its best learning rate, or why it could not be."""
        rows: dict[str, Any] = {}
        budget = make_transfer("kind", data.train.class_names, self.start(data)).trainable
        for row in (*self.settings.strategies, *(f"{one}-{EQUAL}" for one in RATED if one in self.settings.strategies)):
            strategy, _, equal = row.partition("-")
            try:
                rank = rank_for_budget(strategy, data.train.class_names, self.start(data), budget) if equal else None
            except ValueError as error:  # a budget that this strategy cannot meet
                rows[row] = {"refused": str(error)}
                continue
            runs = [self.cell(name, row, strategy, rank, rate, data) for rate in RATES[strategy]]
            defined = [run for run in runs if run["test"] is not None]
            best = min(defined, key=lambda run: run["validation"][-1]) if defined else runs[0]
            rows[row] = {**best, "rates": {str(run["rate"]): run["validation"] for run in runs}}
        return rows

    def cell(self, task: str, row: str, strategy: str, rank: int | None, rate: float, data: Splits) -> dict[str, Any]:
        """One strategy at one learning rate: its losses on validation images on the way, and on test images."""
        name = f"{task}/{row}/{rate:g}".replace(" ", "-")

        def compute() -> dict[str, Any]:
            transfer = self._transfer(strategy, rank, data)
            before = measure_cost(transfer.in_use())
            config = TrainConfig(
                steps=self.settings.steps,
                batch_size=self.settings.batch_size,
                learning_rate=rate,
                label_drop=transfer.label_drop,
                ema_decay=self.settings.ema_decay,
                seed=self.seed,
            )
            validation: list[float] = []
            test = seconds = None
            try:
                for share in self.settings.milestones:
                    part = replace(config, steps=max(1, round(share * config.steps)))
                    seconds = train_cell(transfer.model, data.train, part, self.out / name, self.show(name)).seconds
                    validation.append(self._loss(transfer.model, data.validation))
                test = self._loss(transfer.model, data.test)
            except FloatingPointError:  # it diverged at this rate: there is no test loss
                validation = []
            return {
                "rate": rate,
                "rank": transfer.rank,
                "trainable": transfer.trainable,
                "travels": transfer.travels,
                "parameters": before.parameters,
                "macs": before.macs,
                "validation": validation,
                "test": test,
                "seconds": seconds,
            }

        return kept(self.out / "cells" / f"{name}.json", plain(self.settings), compute)

    def start(self, data: Splits) -> Start:
        """What was pre-trained, and the training loss on some of the task's images."""
        if self._start is None:
            self.pretraining()
            decomposable, dense = self._new(dense=False), self._new(dense=True)
            load_checkpoint_model(self.out / "decomposable", decomposable)
            load_checkpoint_model(self.out / "dense", dense)
            assert isinstance(decomposable, Decomposable)
            assert isinstance(dense, DiT)
            pool: Pool = decomposable.decompose(self.base)
            self._start = Start(dense=dense, pool=pool)
        return replace(self._start, loss=lambda model: self._some_loss(model, data.train))

    def _transfer(self, strategy: str, rank: int | None, data: Splits) -> Transfer:
        generator = torch.Generator().manual_seed(self.seed)
        return make_transfer(strategy, data.train.class_names, self.start(data), rank, generator=generator)

    def _loss(self, model: nn.Module, data: ArrayDataset) -> float:
        return validation_loss(model, data, draws=self.settings.draws, seed=self.seed)

    def _some_loss(self, model: nn.Module, data: ArrayDataset) -> torch.Tensor:
        """The denoising loss of one batch, with its graph."""
        path = DiffusionPath.of(model)
        batch = next(noised_batches(data, path, draws=1, batch_size=self.settings.batch_size, seed=self.seed))
        output: torch.Tensor = model(batch.x_t, batch.t, batch.labels)
        return (output - path.target(batch.x0, batch.noise, batch.t)).square().mean()

    def _glyphs(self, names: Sequence[str]) -> Splits:
        size = self.settings.image_size
        return Splits(
            **{
                split: load_glyphs(split, names, size, per_class=count, cache=self.cache)
                for split, count in self._sizes().items()
            }
        )

    def _sizes(self) -> dict[Split, int]:
        held_out = self.settings.held_out
        return {"train": self.settings.per_class, "validation": held_out, "test": held_out}

    def _base_config(self) -> TrainConfig:
        steps = self.settings.pretraining_steps
        return TrainConfig(
            steps=steps,
            batch_size=self.settings.batch_size,
            learning_rate=self.settings.learning_rate,
            warmup_steps=min(50, steps // 3),
            schedule="cosine",
            ema_decay=self.settings.ema_decay,
            checkpoint_every=max(1, steps // 8),
            checkpoints_total_limit=1,
            seed=self.seed,
        )

    def _new(self, *, dense: bool) -> DiT | Decomposable:
        """A model of the base classes at its first step."""
        return (new_dense if dense else new_decomposable)(self.base, self.settings, self.seed)
