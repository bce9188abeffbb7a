"""How a model is spread over the processes: wrapped for the forward, kept or sharded, whole again for the files.

What is shared goes through torch's DistributedDataParallel, or is sharded by its `fully_shard` (FSDP2) where wanted.
The bank stays outside of both: its rows are gathered by step, and their gradients are summed in `gradients.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from kindgene.core.decomposable import Decomposable
from kindgene.models.dit import DiT
from kindgene.training.config import TrainConfig
from kindgene.training.optimizer import row_tables, shared_parameters
from kindgene.training.placement import Placement
from kindgene.training.processes import Processes


class Spread(nn.Module):
    """What training calls in place of `model`: the same, compiled, checkpointed and spread as the configuration says.

    Every process begins with the main process's weights. With a `placement` the model keeps only the rows of this
    process. Gradients of what is shared come out as the mean over processes.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, processes: Processes, placement: Placement | None
    ) -> None:
        super().__init__()
        self.model = model
        backbone = model.module if isinstance(model, Decomposable) else model
        _begin_alike(model, processes)
        if isinstance(model, Decomposable):
            _hold(model, processes, placement)
        model.to(processes.device)
        self.sharded = config.shard_learngene and processes.size > 1
        if self.sharded:
            for block in _repeated(backbone):
                fully_shard(block)
            fully_shard(backbone)
        self._called = [torch.compile(model) if config.compile else model]  # in a list: it is no submodule of its own
        self.reducer: DistributedDataParallel | None = None
        if processes.size > 1 and not self.sharded and shared_parameters(model):
            # Other backbones may have parts that a forward does not use.
            self.reducer = DistributedDataParallel(
                _Shared(self._called, backbone), find_unused_parameters=not isinstance(backbone, DiT)
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.sharded:
            return (self._called[0] if self.reducer is None else self.reducer)(*args, **kwargs)
        with warnings.catch_warnings():  # of changing the output in place, which training does not
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
            return self._called[0](*args, **kwargs)

    @contextmanager
    def summing(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: gradients are summed over processes after the last one only."""
        if self.sharded:
            backbone = self.model.module if isinstance(self.model, Decomposable) else self.model
            cast(Any, backbone).set_requires_gradient_sync(last)
        if self.reducer is None or last:
            yield
            return
        with self.reducer.no_sync():
            yield


class _Shared(nn.Module):
    """A model whose parameters, to whoever asks, are those of its backbone: what is shared, without the bank."""

    def __init__(self, called: Sequence[Callable[..., Any]], backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self._called = called

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._called[0](*args, **kwargs)


@contextmanager
def recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing of the model's blocks in the block, if wanted."""
    if not wanted:
        yield
        return
    backbone = cast(Any, model.module if isinstance(model, Decomposable) else model)
    before = getattr(backbone, "gradient_checkpointing", None)
    cast(Any, model).enable_gradient_checkpointing()
    try:
        yield
    finally:
        if before is False:
            backbone.disable_gradient_checkpointing()


def whole(tensor: Tensor) -> Tensor:
    """The tensor; of a sharded one all of it, for which every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill_(tensor: Tensor, value: Tensor) -> None:
    """Writes a whole `value` into a tensor that may be sharded; every process has the value."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)


def _hold(model: Decomposable, processes: Processes, placement: Placement | None) -> None:
    """Lets go of the rows of other processes, unless the model was made without them."""
    there = model.bank.tailors.held
    if there is not None:
        if placement is None or not torch.equal(there.cpu(), placement.tailors(processes.rank)):
            raise ValueError("this model was made with some tailors only, and not those that this process is to train")
    elif placement is not None:
        model.bank.tailors.hold(placement.tailors(processes.rank))
        model.bank.labels.hold(placement.classes(processes.rank))


def _begin_alike(model: nn.Module, processes: Processes) -> None:
    """Gives every process the main one's weights, the rows of a bank piece by piece.

    Rows that only their process has are what its generator drew: the same as any other's, from the same seed.
    """
    if processes.size == 1:
        return
    tables = row_tables(model)
    for name, value in model.state_dict().items():
        if name in tables and tables[name].held is not None:
            continue
        for part in value.split(1024) if name in tables else (value,):
            same = part.to(processes.device)
            processes.broadcast_([same])
            part.copy_(same)


def _repeated(backbone: nn.Module) -> Iterable[nn.Module]:
    """The blocks of a backbone: what its lists of modules hold."""
    for child in backbone.modules():
        if isinstance(child, nn.ModuleList):
            yield from child
