"""`train`: the loop. Draw a batch, forward, loss, backward, clip, update, average; log and checkpoint.

Shapes: B samples of an optimizer step, b of a micro-batch, C classes. Sample numbers are global: step k of a
run uses k*B to (k+1)*B - 1, and all that is random is a function of them (`random.py`), so there is no
generator to save.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from kindgene import random
from kindgene.core.bank import GatheredRows
from kindgene.core.decomposable import Decomposable
from kindgene.diffusion.loss import denoising_loss, drop_labels, noise_batch
from kindgene.diffusion.path import DiffusionPath
from kindgene.models.dit import DiT
from kindgene.progress import NoProgress, Progress
from kindgene.training.checkpoint import Checkpoint, limit_checkpoints, save_checkpoint
from kindgene.training.config import TrainConfig, learning_rate
from kindgene.training.ema import EMA
from kindgene.training.optimizer import ModelAdamW, shared_parameters
from kindgene.training.run import Dataset, RunFolder, identity_of, load_checkpoint_model, load_weights
from kindgene.training.stop import Stop, stop_signals

__all__ = ["Dataset", "TrainConfig", "TrainResult", "learning_rate", "load_checkpoint_model", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to, sessions before a resume included.

    losses: of every step; final_loss: mean of the last 50; seconds: spent in steps; out: the run's folder, if
    any.
    """

    steps: int
    images: int
    seconds: float
    final_loss: float
    losses: tuple[float, ...]
    out: Path | None


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    path: DiffusionPath | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains what requires a gradient in `model`: a `Decomposable`, or a plain model like `DiT`.

    The model moves to the device that Accelerate chooses, and is left with its EMA weights (raw ones if
    ema_decay is 0), in eval mode. With `out` the run leaves run.json, log.jsonl and checkpoints there, the
    last one holding raw weights too; ``resume=True`` goes on from the latest, as if it had never stopped.
    `path` defaults to the model's own.

    Ctrl-C and SIGTERM finish the step, write a checkpoint and raise KeyboardInterrupt. Raises
    FloatingPointError, before the update, where the loss or the gradient is not finite; ValueError for what
    does not fit together.
    """
    path = DiffusionPath.of(model) if path is None else path
    _check(model, dataset, config)
    if resume and out is None:
        raise ValueError("resume=True needs the folder of the run: give out")
    identity = identity_of(model, dataset, config, path) if out is not None else {}
    folder = None if out is None else RunFolder.open(out, resume)
    checkpoint = folder.latest(identity) if folder is not None and resume else None
    shown = NoProgress() if progress is None else progress
    with ExitStack() as stack:
        accelerator = stack.enter_context(_accelerator(config.mixed_precision))
        stack.enter_context(_deterministic(config.deterministic))
        stop = stack.enter_context(stop_signals())
        model.to(accelerator.device).train()
        if isinstance(model, Decomposable):
            model.weights = "raw"
        run = _Run(model, dataset, config, path, accelerator, folder, identity)
        if checkpoint is not None:
            run.restore(checkpoint)
        if folder is not None:
            folder.describe(identity, model)
        stack.callback(shown.close)
        shown.start(config.steps, run.step)
        run.loop(shown, stop)
    return run.finish()


class _Run:
    """One run under way: the model, all that changes with it, and where it is kept."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        path: DiffusionPath,
        accelerator: Any,
        folder: RunFolder | None,
        identity: dict[str, Any],
    ) -> None:
        self.model, self.dataset, self.config, self.path = model, dataset, config, path
        self.accelerator, self.folder, self.identity = accelerator, folder, identity
        self.dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        self.optimizer = ModelAdamW(model, betas=config.betas, weight_decay=config.weight_decay)
        self.ema = EMA(model, config.ema_decay) if config.ema_decay > 0 else None
        self.step, self.seconds = 0, 0.0
        self.saved: int | None = None
        self.losses: list[float] = []
        self.seen = torch.zeros(len(dataset.class_names), dtype=torch.bool)

    def loop(self, shown: Progress, stop: Stop) -> None:
        """All steps that are left."""
        config = self.config
        recent: deque[float] = deque(maxlen=20)
        if self.saved is None:
            self.save()  # so that a run can go on from any moment, the first steps included
        while self.step < config.steps and stop.requested is None:
            started = time.perf_counter()
            loss, norm, lr = self.one_step()
            recent.append(time.perf_counter() - started)
            self.seconds += recent[-1]
            speed = config.batch_size * len(recent) / sum(recent)
            if self.folder is not None and (self.step % config.log_every == 0 or self.step == config.steps):
                self.folder.append(self.log_line(norm, lr, speed))
            if config.checkpoint_every is not None and self.step % config.checkpoint_every == 0:
                self.save()
            shown.update(self.step, loss, speed)
        self.save()
        if stop.requested is not None:
            where = "" if self.folder is None else f"; resume=True goes on from {self.folder.path}"
            raise KeyboardInterrupt(f"{stop.requested} after step {self.step} of {config.steps}{where}")

    def one_step(self) -> tuple[float, float, float]:
        """One optimizer step; its loss, the gradients' norm before clipping, and the learning rate."""
        first = self.step * self.config.batch_size
        labels_B = self.draw_labels(first)
        device = self.accelerator.device
        rows = None
        if isinstance(self.model, Decomposable):
            rows = self.model.bank.gather(labels_B.to(device), self.config.batch_size)

        # Gradients.
        self.optimizer.zero_grad()
        loss = self.backward(labels_B, rows, first)
        leaves = self.optimizer.leaves(rows)
        norm = get_total_norm(cast(Tensor, leaf.grad) for leaf in leaves.values())
        self.check_finite(loss, float(norm), leaves)
        if self.config.gradient_clip is not None:
            clip_grads_with_norm_(leaves.values(), self.config.gradient_clip, norm)

        # Update.
        lr = learning_rate(self.config, self.step)
        self.optimizer.step(lr, rows)
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(rows)
        self.seen[labels_B[labels_B < len(self.seen)]] = True
        self.losses.append(loss)
        self.step += 1
        return loss, float(norm), lr

    def draw_labels(self, first: int) -> Tensor:
        """Labels [B] of the whole step, on the CPU, some of them dropped."""
        config = self.config
        numbers = range(first, first + config.batch_size)
        labels_B = self.dataset.labels[self.indices(first, config.batch_size)]
        uniform_B = random.uniform(config.seed, random.Purpose.LABEL_DROP, numbers)
        return drop_labels(labels_B, cast(Any, self.model).null_class, uniform_B, config.label_drop)

    def draw_share(self) -> float:
        """How much of the learngene this step uses: all of it, unless the training is elastic."""
        shares = self.config.elastic_shares
        if not shares:
            return 1.0
        return shares[random.step_integer(self.config.seed, random.Purpose.ELASTIC_RANK, self.step, 0, len(shares))]

    def indices(self, first: int, count: int) -> Tensor:
        """Which entries of the data set samples `first` and on are."""
        return random.sample_indices(self.config.seed, range(first, first + count), len(self.dataset.labels))

    def backward(self, labels_B: Tensor, rows: GatheredRows | None, first: int) -> float:
        """Forward and backward of each micro-batch; the loss, a mean over the whole step's samples."""
        config, device = self.config, self.accelerator.device
        kwargs: dict[str, Any] = {}
        if rows is not None:
            kwargs = {"rows": rows, "learngene_share": self.draw_share()}
        total = torch.zeros((), device=device)
        for labels_b in labels_B.tensor_split(config.gradient_accumulation_steps):
            count = len(labels_b)
            images = self.dataset.batch(self.indices(first, count))
            noise = random.noise(config.seed, range(first, first + count), images.shape[1:])
            t_b = random.timesteps(config.seed, range(first, first + count), self.path.num_steps)
            images, noise = images.to(device, self.dtype), noise.to(device, self.dtype)
            batch = noise_batch(self.path, images, labels_b.to(device), t_b.to(device), noise)
            with self.accelerator.autocast():
                output = self.model(batch.x_t, batch.t, batch.labels, **kwargs)
            output = output if isinstance(output, Tensor) else output.sample
            loss = denoising_loss(self.path, output, batch).sum() / config.batch_size
            self.accelerator.backward(loss)
            total = total + loss.detach()
            first += count
        return float(total)

    def check_finite(self, loss: float, norm: float, leaves: dict[str, Tensor]) -> None:
        """Refuses to update from a loss or a gradient that is not finite."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}"
        if math.isfinite(loss):
            bad = [name for name, leaf in leaves.items() if not torch.isfinite(cast(Tensor, leaf.grad)).all()]
            what = f"the gradient's norm is {norm}" + (f" (first in {bad[0]})" if bad else "")
        self.optimizer.zero_grad()
        kept = "there is no checkpoint"
        if self.folder is not None and self.saved is not None:
            kept = f"the last good checkpoint is {self.folder.checkpoints / f'step-{self.saved:08d}'}"
        raise FloatingPointError(
            f"{what} in step {self.step + 1} of {self.config.steps}, which was not taken; {kept}. "
            "A lower learning rate or a longer warm-up may help"
        )

    def log_line(self, norm: float, lr: float, speed: float) -> dict[str, Any]:
        """What the log says of the steps since its last line."""
        since = (self.step - 1) % self.config.log_every + 1
        return {
            "step": self.step,
            "loss": _mean(self.losses[-since:]),
            "grad_norm": norm,
            "lr": lr,
            "images": self.step * self.config.batch_size,
            "images_per_second": round(speed, 2),
            "classes_seen": int(self.seen.sum()),
        }

    def save(self) -> None:
        """Writes a checkpoint of this moment, once."""
        if self.folder is None or self.saved == self.step:
            return
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
            "history": {"losses": torch.tensor(self.losses, dtype=torch.float64), "seen": self.seen},
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.state()
        self.folder.sync_log()
        state = {"identity": self.identity, "seconds": self.seconds}
        save_checkpoint(self.folder.checkpoints, self.step, tensors, state)
        self.saved = self.step
        limit_checkpoints(self.folder.checkpoints, self.config.checkpoints_total_limit)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Becomes what the run was at that checkpoint, its log included."""
        assert self.folder is not None
        load_weights(self.model, checkpoint.tensors("model"), str(checkpoint.file("model")))
        self.optimizer.load(checkpoint.tensors("optimizer"), str(checkpoint.file("optimizer")))
        if self.ema is not None:
            self.ema.load(checkpoint.tensors("ema"), str(checkpoint.file("ema")))
        history = checkpoint.tensors("history")
        self.losses, self.seen = history["losses"].tolist(), history["seen"]
        self.step, self.seconds, self.saved = checkpoint.step, checkpoint.state["seconds"], checkpoint.step
        self.folder.cut_log(self.step)

    def finish(self) -> TrainResult:
        """Leaves the model as promised."""
        if self.ema is not None:
            self.ema.copy_to_model()
            if isinstance(self.model, Decomposable):
                self.model.weights = "ema"
        if isinstance(self.model, DiT):
            self.model.weights_loaded = True  # no longer a fresh one, to be thrown away without a word
        self.model.eval()
        return TrainResult(
            steps=self.step,
            images=self.step * self.config.batch_size,
            seconds=self.seconds,
            final_loss=_mean(self.losses[-50:]),
            losses=tuple(self.losses),
            out=None if self.folder is None else self.folder.path,
        )


def _check(model: nn.Module, dataset: Dataset, config: TrainConfig) -> None:
    """Refuses a model, data and settings that do not fit together."""
    facts = cast(Any, model)
    names: tuple[str, ...] | None = facts.class_names
    if len(dataset.class_names) != facts.num_classes:
        raise ValueError(
            f"the data has {len(dataset.class_names)} classes, the model {facts.num_classes}: "
            "take dataset.subset(...) or a model with as many"
        )
    if names is not None and tuple(names) != tuple(dataset.class_names):
        raise ValueError(
            f"the model's classes are {list(names)[:10]}, the data's {list(dataset.class_names)[:10]}: "
            "dataset.subset(model.class_names) puts them in the model's order"
        )
    if config.elastic_shares and not (isinstance(model, Decomposable) and shared_parameters(model)):
        raise ValueError("elastic_shares trains a learngene, and here is none to train: leave it out")
    if config.label_drop == 0:
        return
    if facts.null_class is None:
        raise ValueError("this model has no null label: set label_drop=0")
    if isinstance(model, Decomposable) and not shared_parameters(model):
        raise ValueError("the learngene is frozen, so samples without a label would train nothing: set label_drop=0")


@contextmanager
def _accelerator(mixed_precision: str) -> Iterator[Any]:
    """An Accelerator for one run; its process-wide state is taken down again, unless the caller had one."""
    mine = not AcceleratorState._shared_state
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        if accelerator.num_processes != 1:
            raise ValueError(f"training runs in one process, but was launched in {accelerator.num_processes}")
        yield accelerator
    finally:
        if mine:
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms in the block, if wanted; torch's own setting is put back."""
    if not wanted:
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
