"""`TrainConfig`: what a run does, as checked values; and the learning rate, a pure function of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one run of `train`. Raises ValueError, in one line, for values that make no sense.

    steps: optimizer steps in all.
    batch_size: samples an optimizer step, all micro-batches together.
    gradient_accumulation_steps: micro-batches that a step is cut into (sizes differ by at most one).
    learning_rate, warmup_steps, schedule: linear warm-up from 0, then constant or a half cosine down to 0.
    betas, weight_decay: AdamW's. The decay is decoupled and meets every trained number, biases too; a class's
        rows decay in the steps that the class is part of.
    gradient_clip: largest norm of all gradients together (shared and rows); None: no clipping.
    label_drop: probability that a sample loses its label; 0 for a model without a null label.
    ema_decay: of the exponential moving average of the weights, warmed up as min(decay, (1 + t) / (10 + t));
        0: none.
    elastic_shares: shares of every matrix's learngene components, one drawn for each step with equal chance (a share
        that is to come more often is named more often); 1.0 must be among them. (): always the whole learngene.
    mixed_precision: ``"bf16"`` or ``"fp16"`` runs the forward under autocast; the weights keep their dtype. fp16 scales
        the loss, and steps whose gradient overflows are passed over while the scale is found.
    gradient_checkpointing: blocks are computed again in backward instead of being kept.
    compile: the model's forward goes through torch.compile.
    parallel: what several processes do with the batch of a step. ``"data"``: each takes its share; every process holds
        the whole model. ``"tailor"``: each takes the samples of the classes that it owns; it alone holds their tailors
        (see `placement.py`).
    shard_learngene: several processes hold a part of what is shared each (FSDP2).
    on_nonfinite: what becomes of a step whose loss or gradient is not finite: ``"stop"`` raises, ``"skip"`` counts it
        and goes on without an update, until there are too many in a row.
    seed: decides data order, timesteps, noise and label drop, all statelessly; not the initial weights.
    num_workers: processes that read images ahead of the step; 0: none, the step waits for them.
    log_every: steps between lines of the log.
    diagnose_every: steps between measurements of the components (`diagnostics.py`), a multiple of log_every; None:
        none.
    sample_every: steps between pictures of samples from the EMA weights (`grid.py`); None: none.
    report_to: trackers that hear of the log's lines too: ``"tensorboard"``, ``"wandb"``, ``"trackio"``.
    checkpoint_every: steps between checkpoints; None: only at the start, at the end and when stopped.
    checkpoints_total_limit: how many checkpoints are kept; None: all.
    deterministic: ask torch for deterministic algorithms while training (needed on a GPU for exact resume).
    """

    steps: int
    batch_size: int = 128
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    gradient_clip: float | None = 1.0
    label_drop: float = 0.1
    ema_decay: float = 0.999
    elastic_shares: tuple[float, ...] = ()
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    parallel: Literal["data", "tailor"] = "data"
    shard_learngene: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    seed: int = 0
    num_workers: int = 0
    log_every: int = 10
    diagnose_every: int | None = None
    sample_every: int | None = None
    report_to: tuple[str, ...] = ()
    checkpoint_every: int | None = None
    checkpoints_total_limit: int | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "log_every"):
            _whole(name, getattr(self, name), 1)
        for name in ("warmup_steps", "seed", "num_workers"):
            _whole(name, getattr(self, name), 0)
        for name in ("checkpoint_every", "checkpoints_total_limit", "diagnose_every", "sample_every"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        if self.seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {self.seed}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, more than the {self.steps} steps there are")
        if self.gradient_accumulation_steps > self.batch_size:
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}, "
                f"more than batch_size {self.batch_size}"
            )
        _within("learning_rate", self.learning_rate, 0.0, math.inf, low_too=False)
        _within("weight_decay", self.weight_decay, 0.0, math.inf)
        _within("label_drop", self.label_drop, 0.0, 1.0, high_too=True)
        _within("ema_decay", self.ema_decay, 0.0, 1.0)
        if self.gradient_clip is not None:
            _within("gradient_clip", self.gradient_clip, 0.0, math.inf, low_too=False)
        if len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, got {self.betas!r}")
        for beta in self.betas:
            _within("each of betas", beta, 0.0, 1.0)
        _one_of("schedule", self.schedule, ("constant", "cosine"))
        _one_of("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        _one_of("parallel", self.parallel, ("data", "tailor"))
        _one_of("on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        for name in ("gradient_checkpointing", "compile", "shard_learngene", "deterministic"):
            _one_of(name, getattr(self, name), (True, False))
        for tracker in self.report_to:
            _one_of("each of report_to", tracker, TRACKERS)
        if self.diagnose_every is not None and self.diagnose_every % self.log_every:
            raise ValueError(f"diagnose_every is {self.diagnose_every}, no multiple of log_every, {self.log_every}")
        for share in self.elastic_shares:
            _within("each of elastic_shares", share, 0.0, 1.0, low_too=False, high_too=True)
        if self.elastic_shares and 1.0 not in self.elastic_shares:
            raise ValueError(
                f"elastic_shares must have 1.0, the whole learngene, among them, got {self.elastic_shares}"
            )
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "report_to", tuple(self.report_to))
        object.__setattr__(self, "elastic_shares", tuple(self.elastic_shares))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step number `step` (from 0): linear warm-up, then constant or a half cosine to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


def _whole(name: str, value: object, lowest: int) -> None:
    if type(value) is not int or value < lowest:
        raise ValueError(f"{name} must be a whole number of at least {lowest}, got {value!r}")


def _within(name: str, value: object, low: float, high: float, *, low_too: bool = True, high_too: bool = False) -> None:
    good = type(value) in (int, float) and low <= value <= high  # type: ignore[operator]
    if not good or (value == low and not low_too) or (value == high and not high_too):
        ends = f"{'[' if low_too else '('}{low:g}, {high:g}{']' if high_too else ')'}"
        raise ValueError(f"{name} must be a number in {ends}, got {value!r}")


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
