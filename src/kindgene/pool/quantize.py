"""int8 weights for the targets of a plain model, through torchao (an extra), and what smaller numbers do to the output.

Weight-only: each row of a matrix is kept as int8 with one float32 scale (and a zero point, an int8 that torchao stores
though it is 0), and multiplied back when it is used. All that is not a target keeps the pool's dtype, and so does a
matrix of one column, the second of a thin pair of rank 1: it would only grow, and torchao cannot quantize it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from kindgene.core.decomposable import Decomposable
from kindgene.pool.backbones import example_inputs
from kindgene.pool.calibrate import Batch
from kindgene.pool.cost import INT8_ROW_BYTES
from kindgene.pool.noise import without_torchao_noise

SAMPLES, STEPS = 16, 1000
"""Random images that an error is measured on, and the timesteps (0 .. STEPS - 1) over which they are spread."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What torchao turns into int8."""


def quantize_int8(model: nn.Module, targets: Collection[str]) -> nn.Module:
    """Quantizes every ``nn.Linear`` of these targets (both of a thin pair) in place, and returns the model.

    Raises ValueError where torchao is not installed or stores int8 otherwise than is counted, and for a float64 model.
    """
    torchao = check_int8(next(value.dtype for value in model.parameters() if value.is_floating_point()))

    def is_target(module: nn.Module, name: str) -> bool:
        own = any(name == target or name.startswith(f"{target}.") for target in targets)
        return own and isinstance(module, nn.Linear) and module.in_features > 1

    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=is_target)
    for name, module in model.named_modules():
        if is_target(module, name):
            rows, columns = module.weight.shape
            counted, found = rows * (columns + INT8_ROW_BYTES), stored_bytes(module.weight)
            if found != counted:  # how it is stored is no promise of torchao's, and budgets rely on it
                raise ValueError(
                    f"this version of torchao keeps {name} in {found:,} bytes where {counted:,} are counted: "
                    "use another one (0.18 is known to agree)"
                )
    return model


def stored_bytes(value: Tensor) -> int:
    """Bytes of a tensor, or of all tensors that it is made of: a quantized one claims to be what it stands for."""
    if type(value) in (Tensor, nn.Parameter):
        return value.numel() * value.element_size()
    return sum(stored_bytes(inner) for inner in vars(value).values() if isinstance(inner, Tensor))


def check_int8(dtype: torch.dtype) -> Any:
    """torchao's quantization, imported only now. Raises ValueError where there is none, and for float64."""
    if dtype not in FLOATS:
        known = ", ".join(str(one).removeprefix("torch.") for one in FLOATS)
        raise ValueError(f"dtype='int8' needs a pool in one of {known}; this one is in {str(dtype).partition('.')[2]}")
    try:
        with without_torchao_noise():
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
