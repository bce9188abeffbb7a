"""One optimizer step at a time: forward and backward of its micro-batches, clip, update, average.

Shapes: B samples of an optimizer step over all processes, m of a micro-batch, R rows gathered for the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kindgene import random
from kindgene.core.bank import GatheredRows
from kindgene.core.decomposable import Decomposable
from kindgene.diffusion.loss import denoising_loss, noise_batch
from kindgene.diffusion.path import DiffusionPath
from kindgene.training.batches import Batches, MicroBatch
from kindgene.training.config import TrainConfig, learning_rate
from kindgene.training.ema import EMA
from kindgene.training.gradients import LossScale, clip_factor, scale_, sum_rows, total_norms
from kindgene.training.optimizer import ModelAdamW, gathered_tables
from kindgene.training.placement import Placement
from kindgene.training.processes import Processes
from kindgene.training.spread import Spread, whole

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_IMAGES = "the images"
_OF_THE_DATA = "Look at the data: an image has numbers that are not finite"
_OF_TRAINING = "A lower learning rate or a longer warm-up may help"


@dataclass(frozen=True)
class Taken:
    """What became of a step: the loss (mean over its samples), gradient norms before clipping, the learning rate.

    wrong: "" if the update was made, else what was not finite, for a person to read; advice: what may help then.
    """

    loss: float
    learngene_norm: float
    tailors_norm: float
    lr: float
    wrong: str = ""
    advice: str = ""

    @property
    def norm(self) -> float:
        """Of all gradients together."""
        return math.hypot(self.learngene_norm, self.tailors_norm)


class Stepper:
    """A model under training: its weights, their averages, the optimizer's state. `step` counts the steps begun."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        path: DiffusionPath,
        batches: Batches,
        processes: Processes,
        placement: Placement | None,
    ) -> None:
        self.model, self.config, self.path = model, config, path
        self.batches, self.processes, self.placement = batches, processes, placement
        self.spread = Spread(model, config, processes, placement)
        self.dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        self.optimizer = ModelAdamW(model, betas=config.betas, weight_decay=config.weight_decay)
        self.ema = EMA(model, config.ema_decay) if config.ema_decay > 0 else None
        self.scale = LossScale(config.mixed_precision == "fp16")
        self.step = 0

    def take(self, parts: Iterator[MicroBatch | None]) -> Taken:
        """The next step, of as many micro-batches of `parts` as it has. Updates only where all is finite."""
        share = self.batches.share(self.step)
        rows = None
        if isinstance(self.model, Decomposable):
            rows = self.model.bank.gather(share.gathered.to(self.processes.device), max(1, len(share.gathered)))
        mine = [part for _ in range(self.config.gradient_accumulation_steps) if (part := next(parts)) is not None]
        self._seed()

        # Gradients.
        self.optimizer.zero_grad()
        loss = self._backward(mine, rows, share.weight)
        sum_rows(self.model, rows, self.processes, self.placement)
        leaves = self.optimizer.leaves(rows)
        gradients = [cast(Tensor, leaf.grad) for leaf in leaves.values()]
        scale_(gradients, 1.0 / self.scale.scale)
        norms = self._norms(leaves, rows)
        lr = learning_rate(self.config, self.step)
        taken = Taken(loss, *norms, lr)

        # Update.
        if math.isfinite(loss) and math.isfinite(taken.norm):
            scale_(gradients, clip_factor(taken.norm, self.config.gradient_clip))
            self.optimizer.step(lr, rows)
            if self.ema is not None:
                self.ema.update(rows)
        else:
            taken = Taken(loss, *norms, lr, *self._wrong(taken, mine, rows, leaves))
        self.optimizer.zero_grad()
        self.step += 1
        return taken

    def draw_share(self) -> float:
        """How much of the learngene this step uses: all of it, unless the training is elastic."""
        shares = self.config.elastic_shares
        if not shares:
            return 1.0
        return shares[random.step_integer(self.config.seed, random.Purpose.ELASTIC_RANK, self.step, 0, len(shares))]

    def _seed(self) -> None:
        """Torch's own generators, for what a backbone draws (dropout), follow from the step and the process."""
        number = self.step * self.processes.size + self.processes.rank
        torch.manual_seed(random.step_integer(self.config.seed, random.Purpose.GLOBAL_STATE, number, 0, 2**63 - 1))

    def _backward(self, parts: list[MicroBatch], rows: GatheredRows | None, weight: float) -> float:
        """Forward and backward of each micro-batch; the loss, a mean over the whole step's samples of all processes."""
        total = torch.zeros((), dtype=self.processes.exact, device=self.processes.device)
        for part in parts:
            with self.spread.summing(last=part is parts[-1]):
                loss_m = self._loss(self.spread, part, rows)
                loss = loss_m.sum() * (weight / self.config.batch_size)
                # Times the number of processes, as what is shared comes out as a mean over them (`sum_rows` undoes it).
                (loss * (self.processes.size * self.scale.scale)).backward()
            total += loss.detach()
        self.processes.sum_(total)
        return float(total)

    def _loss(self, model: nn.Module, part: MicroBatch, rows: GatheredRows | None) -> Tensor:
        """Loss [m] of each sample of a micro-batch."""
        device, kwargs = self.processes.device, {}
        if rows is not None:
            kwargs = {"rows": rows, "learngene_share": self.draw_share()}
        images, noise = (value.to(device, self.dtype, non_blocking=True) for value in (part.images, part.noise))
        batch = noise_batch(self.path, images, part.labels.to(device), part.t.to(device), noise)
        precision = _PRECISIONS.get(self.config.mixed_precision)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            output: Any = model(batch.x_t, batch.t, batch.labels, **kwargs)
        return denoising_loss(self.path, output if isinstance(output, Tensor) else output.sample, batch)

    def _norms(self, leaves: dict[str, Tensor], rows: GatheredRows | None) -> tuple[float, float]:
        """Norms of the gradients of what is shared and of the rows, over all processes."""
        gathered = gathered_tables(self.model, rows)
        shared = [cast(Tensor, leaf.grad) for name, leaf in leaves.items() if name not in gathered]
        tables = {
            name: (cast(Tensor, table.values.grad)[: table.count], table.present) for name, table in gathered.items()
        }
        return total_norms(shared, tables, self.processes, self.placement)

    def _wrong(
        self, taken: Taken, parts: list[MicroBatch], rows: GatheredRows | None, leaves: dict[str, Tensor]
    ) -> tuple[str, str]:
        """What was not finite, and where first: in which layer's output, or in whose gradient; and what may help."""
        if math.isfinite(taken.loss):
            names = [name for name, leaf in leaves.items() if not torch.isfinite(whole(cast(Tensor, leaf.grad))).all()]
            what, where = f"the gradient's norm is {taken.norm}", names[0] if names else ""
            last = "the sum of their squares, as every gradient is finite"
        else:
            what, where = f"the loss is {taken.loss}", self._first_bad_layer(parts, rows)
            last = "the loss itself, as every layer's output was finite when computed again"
        found = [name for name in self.processes.gather(where) if name]
        return f"{what} (first in {[*found, last][0]})", _OF_THE_DATA if _IMAGES in found else _OF_TRAINING

    @torch.no_grad()
    def _first_bad_layer(self, parts: list[MicroBatch], rows: GatheredRows | None) -> str:
        """Runs the micro-batches again and tells the first module whose output is not finite; "" if none is."""
        bad: list[str] = []
        if any(not torch.isfinite(value).all() for part in parts for value in (part.images, part.noise)):
            return _IMAGES

        def look(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and not bad and not torch.isfinite(output).all():
                    bad.append(name)

            return hook

        hooks = [module.register_forward_hook(look(name)) for name, module in self.model.named_modules() if name]
        try:
            for part in parts:
                self._loss(self.model, part, rows)
        finally:
            for handle in hooks:
                handle.remove()
        return bad[0] if bad else ""
