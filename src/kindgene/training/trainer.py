"""`train`: a run from its first step to its last, or to where it is stopped: what it logs, keeps, and goes on from.

What a step computes is in `step.py`, what it computes it from in `batches.py`. All that is random is a function of the
configuration and global sample numbers, so there is no generator to save, and it does not matter how many processes
take part: the program is the same under python, ``accelerate launch`` and ``torchrun``.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kindgene.core.decomposable import Decomposable
from kindgene.diffusion.path import DiffusionPath
from kindgene.models.dit import DiT
from kindgene.progress import NoProgress, Progress
from kindgene.training.batches import Batches, Dataset
from kindgene.training.checkpoint import Checkpoint, drop_later, limit_checkpoints, open_checkpoint, save_checkpoint
from kindgene.training.checks import check_fit, check_spread
from kindgene.training.config import TrainConfig, learning_rate
from kindgene.training.diagnostics import diagnose
from kindgene.training.environment import memory_in_use
from kindgene.training.grid import Decode, draw_grid
from kindgene.training.keep import held_rows, put_together, take_rows
from kindgene.training.placement import Division, EvenDivision, Placement
from kindgene.training.processes import Processes, launched
from kindgene.training.run import Origin, Resume, RunFolder, identity_of, load_checkpoint_model, load_weights
from kindgene.training.spread import recomputing
from kindgene.training.step import Stepper, Taken
from kindgene.training.stop import Stop, Stopped, stop_signals
from kindgene.training.trackers import Trackers, check_trackers

__all__ = ["Dataset", "TrainConfig", "TrainResult", "learning_rate", "load_checkpoint_model", "train"]

MOST_IN_A_ROW = 10
"""With on_nonfinite="skip", a run ends all the same after so many steps in a row that could not be taken (ours)."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to, sessions before a resume included.

    losses: of every step; final_loss: mean of the last 50; seconds: spent in steps; skipped: steps without an update,
    as their loss or gradient was not finite; out: the run's folder, if any.
    """

    steps: int
    images: int
    seconds: float
    final_loss: float
    losses: tuple[float, ...]
    out: Path | None
    skipped: int = 0


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: Resume = False,
    path: DiffusionPath | None = None,
    progress: Progress | None = None,
    origin: Origin | None = None,
    decode: Decode | None = None,
) -> TrainResult:
    """Trains what requires a gradient in `model`: a `Decomposable`, or a plain model like `DiT`.

    The model moves to the device that Accelerate chooses, and is left with its EMA weights (raw ones if
    ema_decay is 0), in eval mode. With `out` the run leaves run.json, log.jsonl and checkpoints there, the
    last one holding raw weights too; ``resume=True`` goes on from the latest, as if it had never stopped, and the path
    of an earlier one goes back to that. `path` defaults to the model's own. `origin` is written down beside the rest;
    `decode` makes images of latents for the pictures of samples, which show three channels without it.

    In several processes each calls it with a model, data and settings alike; the main one writes and shows. Where the
    model is then spread over them (parallel="tailor", shard_learngene) it is left so: take it from the run's folder.

    Ctrl-C and SIGTERM finish the step, write a checkpoint and raise `Stopped`, a KeyboardInterrupt. Raises
    FloatingPointError, before the update, where the loss or the gradient is not finite; ValueError for what
    does not fit together.
    """
    path = DiffusionPath.of(model) if path is None else path
    check_fit(model, dataset, config)
    if out is None:
        needing = {"resume": resume, "report_to": config.report_to, "sample_every": config.sample_every}
        for name, wanted in needing.items():
            if wanted:
                raise ValueError(f"{name}={wanted} needs the folder of the run: give out")
    check_trackers(config.report_to)
    with ExitStack() as stack:
        processes = stack.enter_context(launched(config.mixed_precision))
        check_spread(model, config, out, processes)
        identity = identity_of(model, dataset, config, path) if out is not None else {}
        folder = None if out is None else RunFolder(Path(out))
        found = processes.share(None if folder is None else processes.first(lambda: _open(folder, resume, identity)))
        checkpoint = None if found is None else open_checkpoint(Path(found), checked=True)

        stack.enter_context(_deterministic(config.deterministic))
        gpus = [processes.device] if processes.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(gpus))
        stop = stack.enter_context(stop_signals())
        stack.enter_context(recomputing(model, config.gradient_checkpointing))
        if isinstance(model, Decomposable):
            model.weights = "raw"
        run = _Run(model, dataset, config, path, processes, folder, identity, decode)
        if checkpoint is not None:
            run.restore(checkpoint)
        processes.first(lambda: None if folder is None else folder.describe(identity, model, processes.size, origin))
        if folder is not None:
            begun = None if checkpoint is None else run.step
            trackers = Trackers(config.report_to, folder.path, identity, resume_step=begun, main=processes.main)
            run.trackers = stack.enter_context(trackers)
        shown = NoProgress() if progress is None or not processes.main else progress
        stack.callback(shown.close)
        shown.start(config.steps, run.step)
        run.loop(shown, stop)
        processes.wait()  # none leaves while another still talks to it
    return run.finish()


def _open(folder: RunFolder, resume: Resume, identity: dict[str, Any]) -> str | None:
    """Opens the run's folder; the path of the checkpoint to go on from, if any."""
    folder.open(resume)
    checkpoint = folder.checkpoint(resume, identity) if resume else None
    if checkpoint is None:
        folder.cut_log(0)
    return None if checkpoint is None else str(checkpoint.path)


class _Run:
    """One run under way: the model, all that changes with it, and where it is kept."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        path: DiffusionPath,
        processes: Processes,
        folder: RunFolder | None,
        identity: dict[str, Any],
        decode: Decode | None,
    ) -> None:
        self.model, self.config, self.processes = model, config, processes
        self.decode = decode
        self.folder, self.identity, self.path = folder, identity, path
        self.trackers: Trackers | None = None
        classes = len(dataset.class_names)
        self.placement: Placement | None = None
        division: Division = EvenDivision(processes.size)
        if config.parallel == "tailor" and processes.size > 1 and isinstance(model, Decomposable):
            tailor_of = model.bank.tailor_of.tolist()
            self.placement = division = Placement.for_data(tailor_of, dataset.labels, processes.size)
        self.batches = Batches(
            dataset,
            config,
            null_class=cast(Any, model).null_class,
            num_timesteps=path.num_steps,
            division=division,
            rank=processes.rank,
        )
        self.stepper = Stepper(model.train(), config, path, self.batches, processes, self.placement)
        self.seconds = 0.0
        self.saved: int | None = None
        self.losses: list[float] = []
        self.skipped = self.in_a_row = 0
        self.seen = torch.zeros(classes, dtype=torch.bool)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.stepper.step

    def loop(self, shown: Progress, stop: Stop) -> None:
        """All steps that are left."""
        config = self.config
        recent: deque[float] = deque(maxlen=20)
        if self.saved is None:
            self.save()  # so that a run can go on from any moment, the first steps included
        parts = self.batches.read(self.step, self.processes.device)
        while self.step < config.steps and not self.asked_to_stop(stop):
            started = time.perf_counter()
            taken = self.stepper.take(parts)
            self.account(taken)
            recent.append(time.perf_counter() - started)
            self.seconds += recent[-1]
            speed = config.batch_size * len(recent) / sum(recent)
            if self.step % config.log_every == 0 or self.step == config.steps:
                self.log(taken, speed)
            if self.folder is not None and config.sample_every is not None and self.step % config.sample_every == 0:
                self.draw(self.folder)
            if config.checkpoint_every is not None and self.step % config.checkpoint_every == 0:
                self.save()
            shown.update(self.step, taken.loss, speed, memory_in_use(self.processes.device))
        self.save()
        if stop.requested is not None:
            where = "" if self.folder is None else f"; resume=True goes on from {self.folder.path}"
            message = f"{stop.requested} after step {self.step} of {config.steps}{where}"
            raise Stopped(message, signal.Signals[stop.requested].value)

    def asked_to_stop(self, stop: Stop) -> bool:
        """Whether any process was asked to; then all know it, and by which signal."""
        if self.processes.size > 1:
            number = 0 if stop.requested is None else signal.Signals[stop.requested].value
            number = self.processes.largest(number)
            stop.requested = signal.Signals(number).name if number else None
        return stop.requested is not None

    def account(self, taken: Taken) -> None:
        """Remembers a step that was taken, or refuses to go on after one that could not be."""
        labels_B = self.batches.step_labels(self.step - 1)
        self.seen[labels_B[labels_B < len(self.seen)]] = True
        self.losses.append(taken.loss)
        scale = self.stepper.scale
        overflowed = bool(taken.wrong) and math.isfinite(taken.loss) and not scale.exhausted
        if not taken.wrong or overflowed:
            scale.update(not taken.wrong)
            self.skipped += overflowed
            self.in_a_row = 0
            return
        kept = "there is no checkpoint"
        if self.folder is not None and self.saved is not None:
            kept = f"the last good checkpoint is {self.folder.checkpoints / f'step-{self.saved:08d}'}"
        told = f"{taken.wrong} in step {self.step} of {self.config.steps}, which was not taken"
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.config.on_nonfinite == "stop" or self.in_a_row > MOST_IN_A_ROW:
            often = "" if self.in_a_row == 1 else f", as the {self.in_a_row - 1} before it"
            raise FloatingPointError(f"{told}{often}; {kept}. {taken.advice}")
        if self.processes.main:
            _LOG.warning("%s (%d skipped so far)", told, self.skipped)

    def log(self, taken: Taken, speed: float) -> None:
        """What the log says of the steps since its last line."""
        since = (self.step - 1) % self.config.log_every + 1
        line: dict[str, Any] = {
            "step": self.step,
            "loss": _mean(self.losses[-since:]),
            "grad_norm": _finite(taken.norm),
            "lr": taken.lr,
            "images": self.step * self.config.batch_size,
            "images_per_second": round(speed, 2),
            "classes_seen": int(self.seen.sum()),
        }
        if self.skipped:
            line["skipped"] = self.skipped
        if self.stepper.scale.dynamic:
            line["loss_scale"] = self.stepper.scale.scale
        if self.config.diagnose_every is not None and self.step % self.config.diagnose_every == 0:
            norms = {"learngene": _finite(taken.learngene_norm), "tailors": _finite(taken.tailors_norm)}
            line["diagnostics"] = {**diagnose(self.model, self.processes), "gradient_norm": norms}
        if self.folder is not None and self.processes.main:
            self.folder.append(line)
        if self.trackers is not None:
            self.trackers.log(line, self.step)

    def draw(self, folder: RunFolder) -> None:
        """A picture of samples as the averaged weights draw them now."""
        images = draw_grid(
            *(self.model, self.stepper.ema, self.path, folder.path, self.step),
            seed=self.config.seed,
            decode=self.decode,
            processes=self.processes,
        )
        if self.trackers is not None and images is not None:
            self.trackers.log_images({"samples": images}, self.step)

    def save(self) -> None:
        """Writes a checkpoint of this moment, once."""
        if self.folder is None or self.saved == self.step:
            return
        stepper, folder = self.stepper, self.folder
        states = {"model": self.model.state_dict(), "optimizer": stepper.optimizer.state()}
        if stepper.ema is not None:
            states["ema"] = stepper.ema.state()
        rows, held = take_rows(self.model, states, self.placement, self.processes)
        tensors = {
            name: put_together(state, self.config.shard_learngene, self.processes) for name, state in states.items()
        }
        tensors["history"] = {"losses": torch.tensor(self.losses, dtype=torch.float64), "seen": self.seen}
        state = {
            "identity": self.identity,
            "seconds": self.seconds,
            "processes": self.processes.size,
            "skipped": [self.skipped, self.in_a_row],
            "loss_scale": [stepper.scale.scale, stepper.scale.good],
        }
        self.processes.first(folder.sync_log)
        save_checkpoint(folder.checkpoints, self.step, tensors, state, processes=self.processes, rows=rows, held=held)
        self.saved = self.step
        self.processes.first(lambda: limit_checkpoints(folder.checkpoints, self.config.checkpoints_total_limit))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Becomes what the run was at that checkpoint, its log included."""
        folder, stepper, held = self.folder, self.stepper, held_rows(self.model)
        assert folder is not None
        load_weights(self.model, checkpoint.tensors("model", held), str(checkpoint.file("model")))
        stepper.optimizer.load(checkpoint.tensors("optimizer", held), str(checkpoint.file("optimizer")))
        if stepper.ema is not None:
            stepper.ema.load(checkpoint.tensors("ema", held), str(checkpoint.file("ema")))
        history, state = checkpoint.tensors("history"), checkpoint.state
        self.losses, self.seen = history["losses"].tolist(), history["seen"]
        self.seconds, self.saved = state["seconds"], checkpoint.step
        self.skipped, self.in_a_row = state.get("skipped", (0, 0))
        stepper.scale.scale, stepper.scale.good = state.get("loss_scale", (stepper.scale.scale, stepper.scale.good))
        stepper.step = checkpoint.step
        before = state.get("processes", 1)
        if before != self.processes.size and self.processes.main:
            _LOG.warning(
                "this run was of %d processes and goes on in %d: the same samples, equal within rounding, not bitwise",
                *(before, self.processes.size),
            )
        self.processes.first(lambda: folder.cut_log(self.step))
        self.processes.first(lambda: drop_later(folder.checkpoints, self.step))

    def finish(self) -> TrainResult:
        """Leaves the model as promised."""
        if self.stepper.ema is not None:
            self.stepper.ema.copy_to_model()
            if isinstance(self.model, Decomposable):
                self.model.weights = "ema"
        if isinstance(self.model, DiT):
            self.model.weights_loaded = True  # no longer a fresh one, to be thrown away without a word
        self.model.eval()
        return TrainResult(
            steps=self.step,
            images=self.step * self.config.batch_size,
            seconds=self.seconds,
            final_loss=_mean(self.losses[-50:]) or math.nan,
            losses=tuple(self.losses),
            out=None if self.folder is None else self.folder.path,
            skipped=self.skipped,
        )


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


def _mean(values: list[float]) -> float | None:
    """Of the finite ones; None where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
