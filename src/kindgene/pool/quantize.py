"""int8 weights for the targets of a plain model, through torchao (an extra), and what smaller numbers do to the output.

Weight-only: each row of a matrix is kept as int8 with one float32 scale, and multiplied back when it is used. All that
is not a target keeps the pool's dtype.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from kindgene.core.decomposable import Decomposable
from kindgene.pool.backbones import example_inputs
from kindgene.pool.calibrate import Batch

SAMPLES, STEPS = 16, 1000


def quantize_int8(model: nn.Module, targets: Collection[str]) -> nn.Module:
    """Quantizes every ``nn.Linear`` of these targets (both of a thin pair), in place; returns the model.

    Raises ValueError where torchao is not installed.
    """
    torchao = _torchao()

    def is_target(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and any(name == t or name.startswith(f"{t}.") for t in targets)

    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=is_target)
    return model


def _torchao() -> Any:
    """torchao's quantization, imported only now: it warns of what torch deprecates, and logs which kernels it lacks."""
    logging.getLogger("torchao").addFilter(lambda record: not record.getMessage().startswith("Failed to load"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("torchao.quantization")
    except ImportError as error:
        raise ValueError("dtype='int8' needs torchao: pip install 'kindgene[int8]'") from error


@torch.no_grad()
def dtype_error(model: nn.Module, small: nn.Module, batches: Iterable[Batch]) -> float:
    """Norm of the change of the output between `model` and the same one in a smaller dtype, relative to the output."""
    change, energy = 0.0, 0.0
    for batch in batches:
        before, after = _output(model, batch), _output(small, batch)
        change += float((after - before).square().sum())
        energy += float(before.square().sum())
    return (change / energy) ** 0.5 if energy else 0.0


def random_batch(backbone: str, model: nn.Module, classes: int) -> dict[str, Tensor]:
    """16 standard-normal images at evenly spaced timesteps, of the classes in turn; always the same."""
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Tensor] = {}
    for name, value in example_inputs(backbone, getattr(model, "module", model)).items():
        if value.is_floating_point():
            batch[name] = torch.randn(SAMPLES, *value.shape[1:], generator=generator, dtype=torch.float32).to(value)
        elif name in ("t", "timestep"):
            batch[name] = torch.arange(SAMPLES) * (STEPS // SAMPLES)
        else:
            batch[name] = torch.arange(SAMPLES) % classes
    return batch


def _output(model: nn.Module, batch: Batch) -> Tensor:
    """The output in float64, of inputs in the model's own dtype."""
    dtype = next(value.dtype for value in model.parameters() if value.is_floating_point())

    def own(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    if isinstance(batch, Mapping):
        named = {name: own(value) for name, value in batch.items()}
        if isinstance(model, Decomposable) and not model.label_argument:
            samples = next(iter(named.values())).shape[0]
            with model.gate(torch.zeros(samples, dtype=torch.long)):
                output = model(**named)
        else:
            output = model(**named)
    else:
        output = model(*map(own, batch))
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor.double()
