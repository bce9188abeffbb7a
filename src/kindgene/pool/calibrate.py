"""What each component is worth on data: how much the model's output would change without it.

To first order, dropping component r (singular value s_r) changes the output y by s_r dy/ds_r. Its squared norm needs no
forward of its own: for random signs z of y's shape, the square of s_r d<z, y>/ds_r has that norm as its mean
(Hutchinson's estimator; samples do not mix, since z is independent between them), and one backward gives it for every
component of every matrix at once. For a denoiser at its optimum that is how much the mean squared error would grow. The
measure is relative to the norm of y (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kindgene.core.decomposable import Decomposable
from kindgene.pool.planner import Importance, PartKey

Batch = Mapping[str, Any] | Sequence[Any]
"""What the model is called with, labels included: positional arguments, or keywords."""


def output_importance(
    model: Decomposable, batches: Iterable[Batch], *, seed: int = 0, progress: Callable[[int], None] | None = None
) -> Importance:
    """The measure ``"output"`` of every component of `model`, averaged over the batches (many small ones are best).

    The model is left as it was. Raises ValueError where there is no batch, or where its output is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scales = {name: layer.s for name, layer in model.layers.items()}
    rows = model.bank.tailors.rows
    sums = {name: torch.zeros_like(s, dtype=torch.float64) for name, s in scales.items()}
    own_sums = torch.zeros_like(rows, dtype=torch.float64)
    energy, done = 0.0, 0
    model.requires_grad_(False)
    for leaf in (*scales.values(), rows):
        leaf.requires_grad_(True)
    try:
        for batch in batches:
            output = _call(model, batch)
            signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
            gradients = torch.autograd.grad((output * signs).sum(), [*scales.values(), rows], materialize_grads=True)
            with torch.no_grad():
                for (name, s), gradient in zip(scales.items(), gradients[:-1], strict=True):
                    sums[name] += (gradient * s).double().square()
                own_sums += (gradients[-1] * rows).double().square()
                energy += float(output.double().square().sum())
            done += 1
            if progress is not None:
                progress(done)
    finally:
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
    if not done:
        raise ValueError("calibration needs at least one batch")
    if not 0 < energy < float("inf"):
        raise ValueError("calibration: the model's outputs are zero or not finite on this data")
    return Importance("output", _by_part(model, sums, own_sums, energy), additive=True)


def _by_part(
    model: Decomposable, sums: Mapping[str, Tensor], own_sums: Tensor, energy: float
) -> dict[PartKey, tuple[Tensor, Tensor]]:
    own = model.bank.tailors.views(own_sums)
    values = {}
    for name, layer in model.layers.items():
        shared_parts = sums[name].split(layer.component_ranks)
        own_parts = own[f"{name}.s"].sum(0).split(layer.tailor_ranks)
        for index, (shared, tailors) in enumerate(zip(shared_parts, own_parts, strict=True)):
            values[name, index] = (shared / energy, tailors / energy)
    return values


def _call(model: Decomposable, batch: Batch) -> Tensor:
    output = model(**batch) if isinstance(batch, Mapping) else model(*batch)
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor
