"""A training step on one GPU, both sides compiled, beside its floor; and each layer by kernels and by torch's own.

Without a CUDA device the same runs on a CPU at tiny size, to rehearse the machinery: its times mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kindgene.benchmarks.models import Shape, batch_of, decomposable_model, dense_model
from kindgene.benchmarks.timing import take_turns
from kindgene.core.bank import TailorBank
from kindgene.core.decomposable import Decomposable
from kindgene.core.gate import Gate
from kindgene.core.linear import KindLinear
from kindgene.diffusion.replay import ReplayedModel
from kindgene.diffusion.sampler import sample
from kindgene.training.ema import EMA
from kindgene.training.optimizer import ModelAdamW

STEP_WAYS = ("decomposable", "dense", "targets free")
SAMPLED = 16
"""Images drawn at once: few, where launching kernels takes longer than running them."""


class FreeLinear(nn.Module):
    """What no layer of these sizes can undercut: its output is its input over and over, read once and written once."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features = layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        times = -(-self.out_features // x.shape[-1])
        return torch.cat([x] * times, dim=-1)[..., : self.out_features] if times > 1 else x[..., : self.out_features]


def measure_gpu(shape: Shape, classes: int, depth: int, repeats: int, sampling_steps: int) -> dict[str, dict[str, Any]]:
    """`step`: median seconds of whole bfloat16 training steps, the STEP_WAYS taking turns, all compiled. `layers`: of
    forward and backward of each layer of a block. `sampling`: images a second with and without CUDA graphs.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "step": _measure_step(shape, classes, depth, repeats, device),
            "layers": _measure_layers(shape, classes, repeats, device),
            "sampling": _measure_sampling(shape, classes, depth, repeats, sampling_steps, device),
        }


def device_name() -> str:
    """The GPU that `measure_gpu` measures, or that it is a rehearsal."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU, in rehearsal"


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds, read when the device has done all it was given."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def _backend(device: torch.device) -> str:
    """A rehearsal traces and does not generate code."""
    return "inductor" if device.type == "cuda" else "aot_eager"


def free_targets(model: nn.Module, names: list[str]) -> nn.Module:
    """The dense model with these layers made free."""
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        model.set_submodule(name, FreeLinear(layer))
    return model


def _measure_step(
    shape: Shape, classes: int, depth: int, repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Of each way the median seconds of a step and, on CUDA, the most bytes that it allocated."""
    ours = decomposable_model(shape, classes, depth=depth)
    models: dict[str, nn.Module] = {
        "decomposable": ours,
        "dense": dense_model(shape, classes, depth=depth),
        "targets free": free_targets(dense_model(shape, classes, depth=depth), list(ours.layers)),
    }
    x, t, y = (value.to(device) for value in batch_of(shape, classes))
    steps = {way: _step(model.to(device), x, t, y, device) for way, model in models.items()}
    seconds = take_turns(steps, repeats, warm=3, now=_clock(device))
    found = {way: {"seconds": value} for way, value in seconds.items()}
    if device.type == "cuda":
        for way, step in steps.items():
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step()
            found[way]["bytes"] = torch.cuda.max_memory_allocated(device) - before
    return found


def _step(model: nn.Module, x: Tensor, t: Tensor, y: Tensor, device: torch.device) -> Callable[[], None]:
    optimizer, average = ModelAdamW(model), EMA(model, 0.9999)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=_backend(device))

    def step() -> None:
        rows = model.bank.gather(y) if isinstance(model, Decomposable) else None
        with torch.autocast(device.type, torch.bfloat16):
            output = compiled(x, t, y) if rows is None else compiled(x, t, y, rows=rows)
        output.float().square().mean().backward()
        optimizer.step(1e-4, rows)
        average.update(rows)
        optimizer.zero_grad()

    return step


def _measure_layers(
    shape: Shape, classes: int, repeats: int, device: torch.device
) -> dict[str, dict[str, dict[str, float]]]:
    """Median seconds of `forward` and `both` of each layer of a block, not compiled: ours, composed, dense.

    As in training: float32 weights under autocast, x in bfloat16.
    """
    model = decomposable_model(shape, classes, depth=1)
    patches = (model.config.input_size // model.config.patch_size) ** 2
    _, _, y = (value.to(device) for value in batch_of(shape, classes))
    found = {}
    for name, layer in model.layers.items():
        if "adaLN" in name:
            continue
        tokens = torch.randn(shape.batch, patches, layer.in_features, device=device, dtype=torch.bfloat16)
        found[name.removeprefix("blocks.0.")] = _measure_layer(layer, classes, tokens, y, repeats)
    return found


def _measure_layer(
    layer: KindLinear, classes: int, x: Tensor, labels: Tensor, repeats: int
) -> dict[str, dict[str, float]]:
    """The layer behind a gate of its own, so that nothing but the layer is timed."""
    layer.gate = Gate()
    layer.to(x.device)
    bank = TailorBank(list(range(classes)), layer.piece_shapes, {}).to(x.device)
    with torch.no_grad():
        bank.tailors.rows.normal_(0.0, 0.02)
    weight = torch.randn(layer.out_features, layer.in_features, device=x.device).requires_grad_()
    selection = bank.select(labels)
    layer.gate.bind(bank.select)
    x.requires_grad_()
    gradient = torch.randn(*x.shape[:2], layer.out_features, device=x.device, dtype=x.dtype)

    def under_autocast(way: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                return way()

        return call

    ways = {
        "ours": under_autocast(lambda: layer(x)),
        "composed": under_autocast(lambda: layer._composed(x, selection, *layer._learngene(1.0))),
        "dense": under_autocast(lambda: F.linear(x, weight, layer.bias)),
    }

    def both(way: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: way().backward(gradient)

    now = _clock(x.device)
    with layer.gate.opened(selection):
        with torch.no_grad():
            forward = take_turns(ways, repeats, warm=3, now=now)
        whole = take_turns({name: both(way) for name, way in ways.items()}, repeats, warm=3, now=now)
    return {name: {"forward": forward[name], "both": whole[name]} for name in ways}


def _measure_sampling(
    shape: Shape, classes: int, depth: int, repeats: int, steps: int, device: torch.device
) -> dict[str, float]:
    """Images a second, guided: the model launched kernel by kernel, and replayed."""
    model = decomposable_model(shape, classes, depth=depth).to(device, torch.bfloat16).eval()
    asked = [index % classes for index in range(min(SAMPLED, shape.batch))]

    def draw(drawn: Any) -> Callable[[], Tensor]:
        return lambda: sample(drawn, asked, guidance=1.5, steps=steps, clip=1.0)

    ways = {"launched": draw(model), "replayed": draw(ReplayedModel(model))}
    seconds = take_turns(ways, repeats, now=_clock(device))
    return {name: len(asked) / value for name, value in seconds.items()}
