"""Linear layers kept as two thin matrices: the plain form a merged model is stored and run in.

A description is JSON: the name of an `nn.Linear` -> one entry a part of its output, a rank or null (dense).
`[12]` is one thin pair of rank 12; `[8, 8, null]`, for a fused qkv, is two thin pairs and one dense third. I
in, O out, r rank.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import nn


class LinearParts(nn.Module):
    """Layers that read the same input and stand side by side in the output."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., I] -> [..., O], O the sum of the parts'."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


def install_low_rank(module: nn.Module, description: Mapping[str, Sequence[int | None]]) -> None:
    """Replace, in place, each named `nn.Linear` of `module` by the form its entry describes.

    The description is the form alone: the values come from `load_state_dict` afterwards. Until then biases
    are kept and the thin pairs are random with the variance of the weight they replace (ours), so a zero
    weight stays exactly zero. `[None]` leaves a layer as it is.

    Raises ValueError, before anything is replaced, for a name that is no `nn.Linear`, a number of parts that
    does not divide the output, and a rank outside 1 .. min(I, O / parts).
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"low_rank must map layer names to lists of ranks, found {description!r}")
    linears = {name: layer for name, layer in module.named_modules() if name and type(layer) is nn.Linear}
    for name, ranks in description.items():
        _check(name, ranks, linears)
    for name, ranks in description.items():
        if list(ranks) != [None]:
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, _thin(linears[name], ranks))


def _check(name: str, ranks: Sequence[int | None], linears: Mapping[str, nn.Linear]) -> None:
    if name not in linears:
        near = difflib.get_close_matches(name, linears, n=3) or list(linears)[:3]
        raise ValueError(f"low_rank names {name!r}, which is no nn.Linear here; near it: {', '.join(near) or 'none'}")
    if not isinstance(ranks, list | tuple) or len(ranks) == 0:
        raise ValueError(f"low_rank[{name!r}] must be a list with one rank or null a part, found {ranks!r}")
    size_in, size_out, parts = linears[name].in_features, linears[name].out_features, len(ranks)
    if size_out % parts:
        raise ValueError(f"low_rank[{name!r}] has {parts} parts, which do not divide its {size_out} outputs")
    limit = min(size_in, size_out // parts)
    for rank in ranks:
        if rank is not None and (type(rank) is not int or not 1 <= rank <= limit):
            raise ValueError(f"low_rank[{name!r}] has rank {rank!r}; a rank is a whole number in 1 .. {limit}, or null")


def _thin(linear: nn.Linear, ranks: Sequence[int | None]) -> nn.Module:
    weights = linear.weight.detach().chunk(len(ranks), dim=0)
    biases = [None] * len(ranks) if linear.bias is None else linear.bias.detach().chunk(len(ranks), dim=0)
    parts = [_part(weight, bias, rank) for weight, bias, rank in zip(weights, biases, ranks, strict=True)]
    thin = parts[0] if len(parts) == 1 else LinearParts(parts)
    return thin.train(linear.training)


def _part(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, rank: int | None) -> nn.Module:
    size_out, size_in = weight_OI.shape
    like = {"device": weight_OI.device, "dtype": weight_OI.dtype}
    last = nn.Linear(size_in if rank is None else rank, size_out, bias=bias_O is not None, **like)
    with torch.no_grad():
        if bias_O is not None:
            last.bias.copy_(bias_O)
        if rank is None:
            last.weight.copy_(weight_OI)
            return last
        # The product's variance is r * (1 / I) * (var I / r) = var.
        first = nn.Linear(size_in, rank, bias=False, **like)
        first.weight.normal_(0.0, size_in**-0.5)
        last.weight.normal_().mul_(weight_OI.square().mean().mul(size_in / rank).sqrt())
    return nn.Sequential(first, last)
