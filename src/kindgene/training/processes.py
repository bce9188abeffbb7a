"""The processes of a run: which of them this one is, and what they tell each other.

Accelerate finds out how the program was launched (python, ``accelerate launch``, ``torchrun``), chooses the device and
starts the process group. A single process is the case in which nothing needs to be told.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Processes:
    """`rank` of `size` processes, and the device that this one computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    @property
    def exact(self) -> torch.dtype:
        """The finest dtype of the device, for sums."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def sum_(self, *tensors: Tensor) -> None:
        """Each tensor becomes its sum over all processes, in place, with the same bits in each."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes that of the main process, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def gather(self, value: Any) -> list[Any]:
        """The value (plain data) of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The main process's value (plain data)."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def wait(self) -> None:
        """Until all have come this far."""
        if self.size > 1:
            dist.barrier()

    def first(self, work: Callable[[], _Result]) -> _Result | None:
        """What `work` comes to on the main process, which alone does it; None on the others.

        Where it raises ValueError or OSError there, all raise ValueError with the same message.
        """
        result, wrong, reason = None, None, None
        if self.main:
            try:
                result = work()
            except (ValueError, OSError) as error:
                wrong, reason = error, str(error)
        reason = self.share(reason)
        if wrong is not None:
            raise wrong
        if reason is not None:
            raise ValueError(reason)
        return result


ALONE = Processes(0, 1, torch.device("cpu"))


def is_main_process() -> bool:
    """Whether this is the first process, or the only one, as the launcher's environment says."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def launched(mixed_precision: str) -> Iterator[Processes]:
    """The processes that this program was launched in; Accelerate's state is taken down again if it was not there."""
    mine = not PartialState._shared_state
    had_group = dist.is_available() and dist.is_initialized()
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", mixed_precision):
        _LOG.warning("launched with mixed precision %s, but the run says %s, which counts", asked, mixed_precision)
    try:
        # Told that there is no accelerator, Accelerate starts a group of CPU processes; by itself it would start none.
        state = cast(Any, PartialState(cpu=int(os.environ.get("WORLD_SIZE", "1")) > 1 and _no_accelerator()))
        if state.num_processes > 1 and not had_group:
            atexit.register(_leave)
        yield Processes(state.process_index, state.num_processes, state.device)
    finally:
        if mine:
            PartialState._reset_state()


def _no_accelerator() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.accelerator.is_available()


def _leave() -> None:
    """The process group is left when the program ends: another training may need it before."""
    if dist.is_initialized():
        dist.destroy_process_group()
