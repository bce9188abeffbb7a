"""What a model costs, counted: parameters, multiply-adds of one forward, bytes of its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """`macs` are multiply-adds of the matrix products and convolutions of one forward of one sample (no guidance)."""

    parameters: int
    trainable_parameters: int
    macs: int
    bytes: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def measure_cost(model: nn.Module, shape: tuple[int, int, int] | None = None) -> Cost:
    """Counts what `model(x, t, y)` costs for one sample of `shape` (default: the model's own input)."""
    values = list(model.parameters())
    saved = {id(value): value for value in model.state_dict(keep_vars=True).values()}  # what is shared, once
    return Cost(
        parameters=sum(value.numel() for value in values),
        trainable_parameters=sum(value.numel() for value in values if value.requires_grad),
        macs=count_macs(model, shape),
        bytes=sum(value.numel() * value.element_size() for value in saved.values()),
    )


def count_macs(model: nn.Module, shape: tuple[int, int, int] | None = None) -> int:
    """Multiply-adds of one forward of one sample of class 0, by torch's operator-level counter (its flops / 2)."""
    if shape is None:
        config: Any = model.config
        shape = (config.in_channels, config.input_size, config.input_size)
    like = next(value for value in model.parameters() if value.is_floating_point())
    x = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    label = torch.zeros(1, dtype=torch.long, device=like.device)
    in_place = {torch.ops.aten.baddbmm_: _baddbmm_flops}  # the counter knows the out-of-place form alone
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Attention by its definition: the fused CPU kernel is an operator that the counter does not know.
        counter = FlopCounterMode(display=False, custom_mapping=in_place)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(x, label, label)
    finally:
        for module in training:  # exactly those, whatever a caller froze in eval mode
            module.training = True
    return int(counter.get_total_flops()) // 2


def _baddbmm_flops(y: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    """Operations (2 a multiply-add) of y + left @ right, from the operands' shapes [B, T, K] and [B, K, O]."""
    batch, tokens, inner = left
    return int(2 * batch * tokens * inner * right[2])
