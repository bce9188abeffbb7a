"""Forwards, backwards and updates of a model on random images, to learn what they take, that leave it as it was.

Shapes: b samples of a micro-batch of one process, C, H, W an image.

Gradients are asked for as values, never left on the parameters; updates are done to copies; what autograd keeps for
backward is seen through its own hooks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.optim.adamw import adamw

from kindgene.core.decomposable import Decomposable
from kindgene.training.config import TrainConfig
from kindgene.training.optimizer import gathered_tables, row_tables, shared_parameters

MEASURED_BYTES = 2**30
"""A batch that is timed keeps at most about so much for backward (ours)."""
UPDATED_NUMBERS = 5_000_000
"""An update is timed on copies of about so many numbers, and counted in proportion (ours)."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Probe:
    """Of one model, images of `shape` [C, H, W] and a configuration's precision; inside `as_in_training`."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], config: TrainConfig) -> None:
        self.model, self.shape = model, shape
        self.dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        self.device = next(model.parameters()).device
        self.autocast = _AUTOCAST.get(config.mixed_precision)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, batch: int) -> tuple[Tensor, list[Tensor]]:
        """A loss, and the leaves whose gradients a step computes."""
        images = torch.randn((batch, *self.shape), generator=self.generator).to(self.device, self.dtype)
        facts = cast(Any, self.model)
        labels = (torch.arange(batch) % facts.num_classes).to(self.device)
        rows = facts.bank.gather(labels) if isinstance(self.model, Decomposable) else None
        leaves: list[Tensor] = list(shared_parameters(self.model).values())
        leaves += [table.values for table in gathered_tables(self.model, rows).values()]
        arguments = {} if rows is None else {"rows": rows}
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.model(images, torch.full_like(labels, 500), labels, **arguments)
        output = output if isinstance(output, Tensor) else output.sample
        return output.float().square().mean(), leaves

    def run(self, batch: int) -> float:
        """Seconds of one forward and backward."""
        _wait(self.device)
        started = time.perf_counter()
        loss, leaves = self.forward(batch)
        torch.autograd.grad(loss, leaves, allow_unused=True)
        _wait(self.device)
        return time.perf_counter() - started

    def saved(self, batch: int) -> int:
        """Bytes that autograd keeps between a forward of `batch` and its backward, weights and rows not counted."""
        kept: dict[int, Tensor] = {}

        def keep(value: Tensor) -> Tensor:
            kept[value.untyped_storage().data_ptr()] = value  # alive, or its address would be used again
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            _, leaves = self.forward(batch)
        for value in (*leaves, *self.model.parameters(), *self.model.buffers()):
            kept.pop(value.untyped_storage().data_ptr(), None)
        return sum(value.untyped_storage().nbytes() for value in kept.values())


def activations(probe: Probe, micro: int, checkpointing: bool) -> int:
    """Bytes that a micro-batch keeps for backward: what 1 and 2 samples keep, extended in a line.

    With checkpointing one block's are added, as they are there when it is computed again: the difference that
    checkpointing makes, divided by the blocks.
    """
    kept = _line(probe.saved(1), probe.saved(2), micro)
    if not checkpointing:
        return round(kept)
    module = _backbone(probe.model)
    original: Callable[..., Any] = module._gradient_checkpointing_func
    blocks = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal blocks
        blocks += 1
        return original(*arguments, **options)

    module.enable_gradient_checkpointing(counted)
    probe.saved(1)
    module.disable_gradient_checkpointing()
    whole = _line(probe.saved(1), probe.saved(2), micro)
    module.enable_gradient_checkpointing(original)
    return round(kept + max(0.0, whole - kept) / max(1, blocks))


def time_of_a_batch(probe: Probe, micro: int, bytes_each: float, seconds: float) -> tuple[float, dict[int, float]]:
    """Seconds of forward and backward of a micro-batch, and what was measured: seconds by batch size.

    Batches of 1, 2, 4 ... are timed as far as `seconds` and `MEASURED_BYTES` allow. Where that falls short of a
    micro-batch, each further sample takes what those between the last two batches did.
    """
    deadline = time.perf_counter() + seconds
    batch = 1
    probe.run(batch)  # the first one prepares what all need
    taken = {batch: probe.run(batch)}
    while batch < micro and 2 * batch * bytes_each <= MEASURED_BYTES:
        if time.perf_counter() + 3 * taken[batch] > deadline and batch > 1:
            break
        batch = min(2 * batch, micro)
        taken[batch] = probe.run(batch)
    last_two = sorted(taken)[-2:]
    deadline = min(deadline, time.perf_counter() + 20 * sum(taken[size] for size in last_two))
    while time.perf_counter() + sum(taken[size] for size in last_two) < deadline:
        for size in last_two:
            taken[size] = min(taken[size], probe.run(size))
    whole = taken[batch]
    if batch == micro or len(last_two) == 1:
        return whole * micro / batch, taken
    each = (whole - taken[last_two[0]]) / (batch - last_two[0])
    each = min(max(each, 0.5 * whole / batch), whole / batch)  # a line through two noisy points may be any
    return whole + each * (micro - batch), taken


def time_of_an_update(model: nn.Module, config: TrainConfig, processes: int) -> float:
    """Seconds of AdamW and the average: of copies of some tensors, in proportion to the numbers of a step."""
    shared = list(shared_parameters(model).values())
    numbers = sum(parameter.numel() for parameter in shared) / (processes if config.shard_learngene else 1)
    copies = [parameter.detach().clone() for parameter in _first(shared)]
    for table in row_tables(model).values():
        touched = min(config.batch_size, len(table.rows))
        if config.parallel == "tailor":
            touched = math.ceil(touched / processes)
        numbers += touched * table.rows.shape[1]
        copies += [row.clone() for row in table.rows.detach()[: min(touched, 8)]]
    update = _updater(copies, config)
    update()
    return min(update(), update()) * numbers / max(1, sum(value.numel() for value in copies))


@contextmanager
def as_in_training(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """Train mode, checkpointing as configured, random states of their own; all put back.

    Raises ValueError where checkpointing is asked for and the backbone does not follow diffusers' protocol.
    """
    evaluating = [module for module in model.modules() if not module.training]
    module, device = _backbone(model), next(model.parameters()).device
    with ExitStack() as stack:
        # Dropout, where a backbone has any, draws from torch's own generators.
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if config.gradient_checkpointing:
            if not isinstance(module, ModelMixin):
                raise ValueError(f"{type(module).__name__} does not follow diffusers' checkpointing protocol")
            if not module.is_gradient_checkpointing:
                cast(Any, model).enable_gradient_checkpointing()
                stack.callback(module.disable_gradient_checkpointing)
        model.train()
        try:
            yield
        finally:
            for one in evaluating:
                one.training = False


def _updater(values: list[Tensor], config: TrainConfig) -> Callable[[], float]:
    """Does a step of AdamW and one of the average to these tensors, and returns its seconds."""
    gradients, first, second = ([torch.zeros_like(value) for value in values] for _ in range(3))
    steps = [torch.zeros((), device=value.device) for value in values]
    averages = [value.to(torch.promote_types(value.dtype, torch.float32), copy=True) for value in values]
    device = values[0].device

    @torch.no_grad()
    def update() -> float:
        _wait(device)
        started = time.perf_counter()
        adamw(
            values,
            gradients,
            first,
            second,
            [],
            steps,
            fused=device.type in ("cpu", "cuda", "mps", "xpu"),
            amsgrad=False,
            beta1=config.betas[0],
            beta2=config.betas[1],
            lr=0.0,
            weight_decay=config.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        if config.ema_decay > 0:
            for average, value in zip(averages, values, strict=True):
                average.lerp_(value.to(average.dtype), 1.0 - config.ema_decay)
        _wait(device)
        return time.perf_counter() - started

    return update


def _first(parameters: list[nn.Parameter]) -> Iterator[nn.Parameter]:
    """As they come, until there are about `UPDATED_NUMBERS`."""
    count = 0
    for parameter in parameters:
        if count >= UPDATED_NUMBERS:
            return
        count += parameter.numel()
        yield parameter


def _line(one: int, two: int, batch: int) -> float:
    """What `batch` samples take, if each takes as much as the second did."""
    return one + (two - one) * (batch - 1)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _backbone(model: nn.Module) -> Any:
    return model.module if isinstance(model, Decomposable) else model
