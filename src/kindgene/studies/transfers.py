"""The novel and the shift study: what is carried over to new classes, by which method, and how well it does.

What the pretrain study trained, decomposable and dense, is where every strategy of `kindgene.transfer` begins. Each is
trained on the same new data, with the same batches, noise and number of steps, at the learning rate of its grid that is
best on validation images of seed 0; the figures are of test images. Those whose size can be chosen run twice: at their
usual rank, and at the rank that trains as many numbers as KIND. What a step of each costs is measured in turns.

``novel``: classes of the same kind that pre-training has not seen. ``shift``: far domains (digits, phantoms, stars,
textures), where carrying everything over may hurt.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from contextlib import suppress
from functools import cache as kept
from typing import Any, ClassVar, Unpack

import torch

from kindgene.core.decomposable import Decomposable
from kindgene.data.dataset import Dataset
from kindgene.diffusion.path import DiffusionPath
from kindgene.evaluation.cost import measure_cost
from kindgene.evaluation.denoising import noised_batches
from kindgene.files import StrPath
from kindgene.models.dit import DiT
from kindgene.studies.cell import best_device, train_curve
from kindgene.studies.cells import Cells, Place
from kindgene.studies.latents import train_choices
from kindgene.studies.measure import DivergedError, Eyes, best_rate
from kindgene.studies.pretraining import FINAL, REAL, Pretraining
from kindgene.studies.source import Splits
from kindgene.studies.training_costs import training_costs
from kindgene.studies.transfer_settings import KIND, RATES, SCALES, TransferSettings
from kindgene.training.config import TrainConfig
from kindgene.transfer.budget import rank_for_budget
from kindgene.transfer.strategies import Start, Transfer, make_transfer

COSTS = "costs"


class Transfers(Cells):
    """A study's trainings: ``TASK/ROW/RATE`` for seed 0, and for every seed ``TASK/ROW/final`` at the best rate.

    ``TASK/real`` are figures of real images, ``costs`` what a step of each row costs. `Novel` and `Shift` share
    it; `others` are the settings of the other one.
    """

    settings: TransferSettings
    others: ClassVar[tuple[str, ...]]

    def __init__(self, folder: StrPath, **place: Unpack[Place]) -> None:
        super().__init__(folder, SCALES, **place)
        self.base = Pretraining(folder, **place)
        self.told = {key: value for key, value in self.told.items() if key not in self.others}
        self.told["pretraining"] = self.base.told
        # Of this object, so that data and models are let go with it.
        self.splits, self.eyes, self.start = kept(self._splits), kept(self._eyes), kept(self._start)

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """The sets of new classes."""

    @property
    @abstractmethod
    def rows(self) -> tuple[str, ...]:
        """What is compared: strategies, at their usual rank or ``-equal``."""

    @abstractmethod
    def _splits(self, task: str) -> Splits:
        """A task's images."""

    def names(self) -> tuple[str, ...]:
        """Rate by rate, then the best: checkpoints of one row at a time lie on the disk."""
        found = []
        for task in self.tasks:
            found.append(f"{task}/{REAL}")
            for row in self.rows:
                if self.seed == 0:
                    found += [f"{task}/{row}/{rate:g}" for rate in self.rates(row)]
                found.append(f"{task}/{row}/{FINAL}")
        return (*found, *([COSTS] if self.seed == 0 else []))

    def compute(self, name: str) -> dict[str, Any]:
        if name == COSTS:
            return self.costs()
        task, _, rest = name.partition("/")
        if rest == REAL:
            return self.eyes(task).real(self.picture(name))
        row, _, rate = rest.partition("/")
        self.start(task)  # what is wrong with that is no row's own fault
        try:
            transfer = self.transfer(task, row)
        except ValueError as error:  # a budget that this strategy cannot meet
            return {"refused": str(error)}
        if rate != FINAL:
            return self.train(transfer, task, row, float(rate))
        return self.final(transfer, task, row, self.picture(name))

    def final(self, transfer: Transfer, task: str, row: str, picture: Any) -> dict[str, Any]:
        """The figures of a row at its best rate; its checkpoints are removed."""
        used = measure_cost(transfer.in_use())
        costs = {
            "rank": transfer.rank,
            "blocks": list(transfer.blocks),
            "trainable": transfer.trainable,
            "travels": transfer.travels,
            "parameters": used.parameters,
            "macs": used.macs,
        }
        try:
            trained = self.train(transfer, task, row, self.rate(task, row))
            if not trained["validation"]:
                return {"refused": "it diverged with this seed at the best rate of seed 0"}
            figures = self.eyes(task).figures(transfer.model, picture)
        except (DivergedError, FloatingPointError) as error:
            return {"refused": str(error)}
        shutil.rmtree(self.folder / "runs" / task / row, ignore_errors=True)
        return {**trained, **costs, **figures}

    def costs(self) -> dict[str, Any]:
        """What a training step of each row costs, for the classes of the first task; rows that cannot be are left out.

        All tasks have as many classes, or nearly: steps cost the same.
        """
        task = self.tasks[0]
        self.start(task)
        models = {}
        for row in self.rows:
            with suppress(ValueError):  # a budget that this strategy cannot meet, told by its own cells
                transfer = self.transfer(task, row)
                models[row] = transfer.model.to(best_device())
        shape = self.splits(task).train.shape
        config = self.config(self.rates(KIND)[0], 0.0)
        return training_costs(models, shape, config, self.settings.cost_rounds)

    def result(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "scale": self.scale,
            "seed": self.seed,
            "settings": self.told,
            "costs": self.of_seed(0).get(COSTS),
            "measured_with": {
                **self.eyes(self.tasks[0]).told(),
                "judge": {task: self.eyes(task).told()["judge"] for task in self.tasks},
            },
            "tasks": {
                task: {
                    "classes": list(self.splits(task).train.class_names),
                    "real": self.get(f"{task}/{REAL}"),
                    "rows": {row: self.row(task, row) for row in self.rows},
                }
                for task in self.tasks
            },
            "pictures": {
                f"{task}/{row}".removesuffix(f"/{FINAL}"): str(self.picture(f"{task}/{row}"))
                for task in self.tasks
                for row in (REAL, *(f"{row}/{FINAL}" for row in self.rows))
            },
        }

    def outlook(self) -> dict[str, Any]:
        return {**super().outlook(), "pretraining": self.base.outlook()}

    def row(self, task: str, row: str) -> dict[str, Any]:
        """The figures of a row, and its validation losses at every rate."""
        found = self.get(f"{task}/{row}/{FINAL}")
        return found if "refused" in found else {**found, "rates": self.grid(task, row)}

    def rates(self, row: str) -> tuple[float, ...]:
        """The grid of a row's strategy; at tiny scale one rate of it."""
        rates = RATES[row.partition("-")[0]]
        chosen = rates if self.settings.whole_grid else rates[1:2]
        return tuple(self.settings.rate_factor * rate for rate in chosen)

    def grid(self, task: str, row: str) -> dict[str, list[float]]:
        """Rate -> validation losses on the way, of seed 0; [] where it diverged."""
        first = self.of_seed(0)
        return {f"{rate:g}": first.get(f"{task}/{row}/{rate:g}").get("validation", []) for rate in self.rates(row)}

    def rate(self, task: str, row: str) -> float:
        """The best learning rate, chosen with seed 0."""
        return best_rate([(float(rate), {"validation": losses}) for rate, losses in self.grid(task, row).items()])

    def transfer(self, task: str, row: str) -> Transfer:
        """A row's model at its first step. Raises ValueError for a budget that the strategy cannot meet."""
        strategy, _, equal = row.partition("-")
        names, start, rank = self.splits(task).train.class_names, self.start(task), None
        if equal:
            budget = make_transfer(KIND, names, start).trainable
            rank = rank_for_budget(strategy, names, start, budget)
        generator = torch.Generator().manual_seed(self.seed)
        return make_transfer(strategy, names, start, rank, generator=generator)

    def train(self, transfer: Transfer, task: str, row: str, rate: float) -> dict[str, Any]:
        """Trains at this rate; validation loss at the milestones, [] where it diverged."""
        name = f"{task}/{row}/{rate:g}"
        splits, eyes = self.splits(task), self.eyes(task)
        curve = train_curve(
            transfer.model,
            splits.train,
            self.config(rate, transfer.label_drop),
            self.settings.milestones,
            lambda model: eyes.loss(model, splits.validation),
            self.folder / "runs" / name,
            self.show(name),
        )
        return {"rate": rate, "validation": curve.validation, "seconds": curve.seconds}

    def config(self, rate: float, label_drop: float) -> TrainConfig:
        """How a row is trained."""
        return TrainConfig(
            steps=self.settings.steps,
            batch_size=self.settings.batch_size,
            learning_rate=rate,
            label_drop=label_drop,
            ema_decay=self.settings.ema_decay,
            mixed_precision=self.base.settings.mixed_precision,
            seed=self.seed,
            **train_choices(self.base.settings),
        )

    def _eyes(self, task: str) -> Eyes:
        splits, source = self.splits(task), self.base.source
        return Eyes(splits, source.eyes, source.judge(splits), self.base.settings.look, self.seed)

    def _start(self, task: str) -> Start:
        """What was pre-trained, and the training loss on some of the task's images."""
        decomposable, dense = self._pretrained()
        data = self.splits(task).train
        return Start(
            dense=dense, pool=decomposable.decompose(self.base.classes), loss=lambda model: self._some_loss(model, data)
        )

    def _pretrained(self) -> tuple[Decomposable, DiT]:
        decomposable, dense = self.base.model("decomposable").cpu(), self.base.model("dense").cpu()
        assert isinstance(decomposable, Decomposable)
        assert isinstance(dense, DiT)
        return decomposable, dense

    def _some_loss(self, model: torch.nn.Module, data: Dataset) -> torch.Tensor:
        """The denoising loss of one batch, with its graph."""
        path = DiffusionPath.of(model)
        batch = next(noised_batches(data, path, draws=1, batch_size=self.settings.batch_size, seed=self.seed))
        output: torch.Tensor = model(batch.x_t, batch.t, batch.labels)
        predicted, _ = path.split(output, channels=batch.x0.shape[1])
        return (predicted - path.target(batch.x0, batch.noise, batch.t)).square().mean()


class Novel(Transfers):
    """Classes of the same kind that pre-training has not seen; tasks ``novel-0``, ``novel-1``, ..."""

    study = "novel"
    others = ("shifts", "shift_classes", "shift_rows")

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(f"novel-{task}" for task in range(self.settings.tasks))

    @property
    def rows(self) -> tuple[str, ...]:
        return self.settings.novel_rows

    def _splits(self, task: str) -> Splits:
        """Novel classes, evenly spaced."""
        count, size = self.settings.tasks, self.settings.task_classes
        novel = self.base.source.novel
        chosen = novel[:: max(1, len(novel) // (count * size))][: count * size]
        number = int(task.removeprefix("novel-"))
        return self.base.source.splits(chosen[number * size : (number + 1) * size])


class Shift(Transfers):
    """Far domains; a task is the name of a far set."""

    study = "shift"
    others = ("tasks", "task_classes", "novel_rows")

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.settings.shifts

    @property
    def rows(self) -> tuple[str, ...]:
        return self.settings.shift_rows

    def _splits(self, task: str) -> Splits:
        """The first classes of a far set."""
        return self.base.source.far(task, self.settings.shift_classes)
