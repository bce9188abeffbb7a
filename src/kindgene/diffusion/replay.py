"""CUDA graphs for sampling: a model whose calls of one shape are recorded once and replayed.

A sampling step of a small batch is bound by the time the CPU takes to launch some hundreds of kernels, not by what they
compute. `sample(ReplayedModel(model), ...)` launches each call as one CUDA graph. Why not torch.compile with
mode="reduce-overhead": it compiles for a minute or so for every shape, where a recording takes a few forwards, and it
hands out memory that its next replay overwrites; for a service that samples all day it is the better choice, and a
compiled model may be replayed as well.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WARM = 3
"""Calls before one is recorded: libraries choose their algorithms and allocate their workspaces in the first ones."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Records a call that gives a tensor: what replays it, and the tensor that a replay writes to."""


class _Recording(NamedTuple):
    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    output: Tensor


def record_cuda_graph(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Records the kernels of `call` on the current device; it may not wait for the device (`.item()` and the like)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph.replay, output


class ReplayedModel(nn.Module):
    """A class-conditional model (see `sampler.ClassConditional`) whose calls without gradient on CUDA are replayed.

    A call of a new shape, dtype, autocast dtype or mode, or after weights were replaced or moved, is recorded anew;
    weights changed in place are seen. Each recording keeps the memory of one forward. With gradients on, and on other
    devices, the model itself is called. Calls take turns: one thread at a time.
    """

    def __init__(self, model: Any, record: Record = record_cuda_graph, device: str = "cuda") -> None:
        super().__init__()
        self.model = model
        self._record, self._device = record, device
        self._recordings: dict[Hashable, _Recording] = {}

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def num_classes(self) -> int:
        return int(self.model.num_classes)

    @property
    def null_class(self) -> int | None:
        label: int | None = self.model.null_class
        return label

    @property
    def class_names(self) -> tuple[str, ...] | None:
        names: tuple[str, ...] | None = self.model.class_names
        return names

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Any:
        """As the model's, and a tensor of its own even where the model gives an object with `.sample`."""
        if x.device.type != self._device or torch.is_grad_enabled():
            return self.model(x, t, y)
        key = self._key(x, t, y)
        if key not in self._recordings:
            inputs = tuple(value.clone() for value in (x, t, y))
            self._recordings[key] = _Recording(inputs, *self._record(lambda: _tensor(self.model(*inputs))))
        recording = self._recordings[key]
        for kept, value in zip(recording.inputs, (x, t, y), strict=True):
            kept.copy_(value)
        recording.replay()
        return recording.output.clone()

    def _key(self, *inputs: Tensor) -> Hashable:
        """All that a recording holds true for."""
        shapes = tuple((value.shape, value.dtype, value.device) for value in inputs)
        weights = tuple(value.data_ptr() for value in (*self.model.parameters(), *self.model.buffers()))
        kind = self._device
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return shapes, weights, autocast, self.model.training


def _tensor(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.sample
    return found
