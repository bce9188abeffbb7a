"""The deploy study: the pre-trained model recombined for few and for many classes, against dense models.

For class sets of several sizes, evenly spaced among the base classes: KIND recombined whole; of one class, merged into
plain layers too, which have no gate to pass and no null class to guide with; KIND recombined with half of those
parameters, the components dropped that cost the output least on training images; the dense twin, which learned all base
classes and keeps the label rows of these; and a dense DiT of as many parameters as the whole recombined one, trained
from scratch on these classes alone. The last has the pretrain study's steps and batch size, so it sees each of its
classes more often than any other model did, and the dense twin's best learning rate: no grid of its own. Of all base
classes it is the pretrain study's own dense model of as many stored parameters, at that one's best rate.

Whatever the set, samples are judged among all base classes: with one class there is nothing else to take them for.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache as kept
from types import MappingProxyType
from typing import Any, Unpack

import safetensors.torch
import torch
from torch import nn

from kindgene.core.decomposable import Decomposable
from kindgene.diffusion.path import DiffusionPath
from kindgene.evaluation.cost import measure_cost
from kindgene.evaluation.denoising import calibration_batches
from kindgene.files import StrPath
from kindgene.models.dit import DiT
from kindgene.pool.budget import ImpossibleBudgetError
from kindgene.pool.latency import wait
from kindgene.pool.pool import Pool
from kindgene.studies.cell import best_device, train_curve
from kindgene.studies.cells import Cells, Place, settings_of
from kindgene.studies.glyph_models import new_dense
from kindgene.studies.measure import Eyes
from kindgene.studies.pretraining import REAL, Pretraining
from kindgene.studies.source import Splits
from kindgene.transfer.new_classes import LABEL_TABLE, unfilled
from kindgene.transfer.pretraining import dense_control

ROWS: Mapping[str, str] = MappingProxyType(
    {
        "kind": "KIND, recombined whole",
        "kind-merged": "KIND, its one class merged into plain layers",
        "kind-cut": "KIND, recombined with components dropped",
        "dense": "the dense twin of all base classes",
        "scratch": "a dense DiT of as many parameters, these classes alone",
    }
)
WHOLE, MERGED, CUT, DENSE, SCRATCH = ROWS
_WARMUP = 3


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """Sizes of the study; those of models and trainings are the pretrain study's.

    `sets`: how many classes; `fewest_samples` are drawn for a set at least, of few classes more of each. `share` of the
    whole recombined model's parameters are left where components are dropped; `calibration` batches of 16 training
    images say what they are worth. A latency is the least of so many `rounds`.
    """

    sets: tuple[int, ...]
    fewest_samples: int
    share: float = 0.5
    calibration: int = 32
    batch_sizes: tuple[int, ...] = (1, 16)
    rounds: int = 60


_LARGE = DeploySettings(sets=(1, 5, 15, 50, 150), fewest_samples=2_000)

SCALES: Mapping[str, DeploySettings] = MappingProxyType(
    {
        "tiny": DeploySettings(sets=(1, 3), fewest_samples=4, share=0.9, calibration=2, batch_sizes=(1, 2), rounds=2),
        "mini": DeploySettings(sets=(1, 5, 15, 24), fewest_samples=256),
        "full": DeploySettings(sets=(1, 5, 15, 50, 150), fewest_samples=512),
        "imagenet": _LARGE,
        "imagenet-l4": _LARGE,
    }
)


def deploy_settings(scale: str) -> DeploySettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    return settings_of("deploy", SCALES, scale)


class Deploy(Cells):
    """A cell a model, ``CLASSES/ROW``, CLASSES being their number; ``CLASSES/real`` are figures of real images."""

    study = "deploy"
    settings: DeploySettings

    def __init__(self, folder: StrPath, **place: Unpack[Place]) -> None:
        super().__init__(folder, SCALES, **place)
        self.base = Pretraining(folder, **place)
        self.told["pretraining"] = self.base.told
        # Of this object, so that data and models are let go with it.
        self.splits, self.eyes = kept(self._splits), kept(self._eyes)
        self.pool, self.twin = kept(self._pool), kept(self._twin)

    def names(self) -> tuple[str, ...]:
        return tuple(f"{count}/{row}" for count in self.settings.sets for row in (REAL, *self.rows(count)))

    def rows(self, count: int) -> tuple[str, ...]:
        """What is compared for so many classes."""
        return tuple(row for row in ROWS if count == 1 or row != MERGED)

    def compute(self, name: str) -> dict[str, Any]:
        first, _, row = name.partition("/")
        count = int(first)
        if row == REAL:
            return self.eyes(count).real(self.picture(name))
        if row == SCRATCH:
            return self.scratch(count)
        if row == DENSE:
            return self.measured(count, row, self.dense(count))
        try:
            return self.measured(count, row, self.recombined(count, row))
        except ImpossibleBudgetError as error:
            return {"refused": str(error)}

    def result(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "scale": self.scale,
            "seed": self.seed,
            "settings": self.told,
            "measured_with": {
                **self.eyes(self.settings.sets[0]).told(),
                "samples_per_class": {str(count): self.eyes(count).look.samples for count in self.settings.sets},
            },
            "sets": {
                str(count): {
                    "classes": list(self.classes(count)),
                    "real": self.get(f"{count}/{REAL}"),
                    "rows": {row: self.get(f"{count}/{row}") for row in self.rows(count)},
                }
                for count in self.settings.sets
            },
            "pictures": {name: str(self.picture(name)) for name in self.names()},
        }

    def outlook(self) -> dict[str, Any]:
        return {
            **super().outlook(),
            "sets": {str(count): list(self.classes(count)) for count in self.settings.sets},
            "pretraining": self.base.outlook(),
        }

    def classes(self, count: int) -> tuple[str, ...]:
        """So many base classes, evenly spaced."""
        every = self.base.classes
        return tuple(every[number * len(every) // count] for number in range(count))

    def recombined(self, count: int, row: str) -> nn.Module:
        """KIND recombined for these classes as the row says. Raises ImpossibleBudgetError."""
        names, pool = self.classes(count), self.pool()
        plan = pool.plan(names, form="merged" if row == MERGED else "auto")
        if row == CUT:
            data = self.splits(count).train
            path = DiffusionPath.of(self.twin())
            batches = calibration_batches(data, path, count=self.settings.calibration, seed=self.seed)
            limit = int(self.settings.share * plan.cost.parameters)
            plan = pool.plan(names, max_parameters=limit, calibration=batches)
        return pool.recombine(plan=plan)

    def dense(self, count: int) -> DiT:
        """The dense twin of all base classes, with the label rows of these alone (and the null row)."""
        twin, names = self.twin(), self.classes(count)
        with torch.random.fork_rng(devices=[]):  # first weights, which are replaced
            model: DiT = unfilled(twin, names)
        state = twin.state_dict()
        rows = [*(self.base.classes.index(name) for name in names), -1]
        model.load_state_dict({**state, LABEL_TABLE: state[LABEL_TABLE][rows]}, strict=True)
        model.eval()
        return model

    def scratch(self, count: int) -> dict[str, Any]:
        """The figures of a dense DiT of as many parameters as KIND recombined whole, trained on these classes alone."""
        names, run = self.classes(count), self.folder / "runs" / str(count)
        if names == self.base.classes:
            kind = "dense-equal"
            model: nn.Module = self.base.model(kind)
            trained = self.base.get(f"{kind}/final")
            told = {"rate": trained["rate"], "curve": trained["validation"], "seconds": trained["seconds"]}
        else:
            model = self.new_scratch(count)
            rate, splits, eyes = self.base.rate("dense"), self.splits(count), self.eyes(count)
            curve = train_curve(
                model,
                splits.train,
                self.base.config(rate),
                self.base.settings.milestones,
                lambda trained: eyes.loss(trained, splits.validation),
                run,
                self.show(f"{count}/{SCRATCH}"),
            )
            if not curve.validation:
                return {"refused": f"it diverged at a learning rate of {rate:g}, the dense twin's best"}
            told = {"rate": rate, "curve": curve.validation, "seconds": curve.seconds}
        found = {**told, **self.measured(count, SCRATCH, model)}
        shutil.rmtree(run, ignore_errors=True)
        return found

    def new_scratch(self, count: int) -> DiT:
        """A dense DiT at its first step, of the width at which it stores nearest to what the recombined one does."""
        dense = new_dense(self.classes(count), self.base.settings, self.seed)
        stored = self.pool().plan(self.classes(count)).cost.parameters
        return dense_control(dense, stored, generator=torch.Generator().manual_seed(self.seed))

    def measured(self, count: int, row: str, model: nn.Module) -> dict[str, Any]:
        """Costs of a model, latency beside the dense twin's, and what it draws."""
        model.requires_grad_(False).eval()
        cost = measure_cost(model.cpu())  # a GPU's own kernels are not seen by the counter
        model, beside = model.to(best_device()), self.dense(count)
        eyes = self.eyes(count) if row != MERGED else self.eyes(count).unguided()
        return {
            "parameters": cost.parameters,
            "macs": cost.macs,
            "bytes": stored_bytes(model),
            "latency": {
                str(size): latency(model, beside, size, self.settings.rounds) for size in self.settings.batch_sizes
            },
            "validation": eyes.loss(model, self.splits(count).validation),
            **eyes.figures(model, self.picture(f"{count}/{row}")),
        }

    def _splits(self, count: int) -> Splits:
        return self.base.source.splits(self.classes(count))

    def _eyes(self, count: int) -> Eyes:
        """Of these classes' images; the judge knows all base classes."""
        look = self.base.settings.look
        each = max(look.samples, -(-self.settings.fewest_samples // count))
        judge = self.base.eyes.judge
        return Eyes(self.splits(count), self.base.source.eyes, judge, replace(look, samples=each), self.seed)

    def _pool(self) -> Pool:
        model = self.base.model("decomposable").cpu()
        assert isinstance(model, Decomposable)
        return model.decompose(self.base.classes)

    def _twin(self) -> DiT:
        trained = self.base.model("dense")
        assert isinstance(trained, DiT)
        model: DiT = trained.to(best_device())  # a training that is done already leaves it where it was
        return model


def stored_bytes(model: nn.Module) -> int:
    """How long the safetensors file of a model's weights is."""
    return len(safetensors.torch.save({key: value.contiguous().cpu() for key, value in model.state_dict().items()}))


@torch.inference_mode()
def latency(model: nn.Module, beside: nn.Module, batch_size: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a forward of a batch whose samples are of different classes, and the ratio to another model's.

    Both run in turn, first one, then the other ahead; of each the fastest pass counts: a median is moved by what else
    the machine does. On one CPU thread it is the thread's processor time, to which waiting for a core does not add.
    """
    device = best_device()
    config: Any = beside.config
    x = torch.zeros(batch_size, config.in_channels, config.input_size, config.input_size, device=device)
    label = torch.arange(batch_size, device=device) % config.num_classes
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock, models = time.thread_time if alone else time.perf_counter, (model, beside)
    fastest = [float("inf")] * len(models)
    for number in range(_WARMUP + rounds):
        for place in (0, 1) if number % 2 else (1, 0):
            wait(device)
            started = clock()
            models[place](x, label, label)
            wait(device)
            fastest[place] = min(fastest[place], clock() - started)
    own, other = fastest
    return {"milliseconds": 1000 * own, "ratio": own / other}
