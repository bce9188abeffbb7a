"""Other ways to compute a gated layer, to be compared with ours: the full rank masked, and a loop over the classes.

Shapes as in `core/linear.py`; R components of the full rank (min(I, O/N)), shared ones first, then K a class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kindgene.core.components import Components
from kindgene.core.decomposable import Decomposable
from kindgene.core.linear import KindLinear, join_parts


class MaskedFullRank(nn.Module):
    """Every component there is, multiplied for every sample; a mask then lets through the sample's own.

    Classes beyond what the full rank has room for use the last ones over again: time does not depend on which.
    """

    def __init__(self, layer: KindLinear) -> None:
        super().__init__()
        self.gate, self.name, self.parts = layer.gate, layer.name, layer.parts
        rank, outputs = min(layer.in_features, layer.part_features), layer.part_features
        self.v = nn.Parameter(torch.randn(self.parts * rank, layer.in_features) * layer.in_features**-0.5)
        self.s = nn.Parameter(torch.ones(self.parts, rank))
        self.u = nn.Parameter(torch.randn(self.parts, rank, outputs) * rank**-0.5)
        self.bias = layer.bias
        self.shared, self.own = max(rank for rank in layer.component_ranks), max(layer.tailor_ranks)

    def forward(self, x: Tensor) -> Tensor:
        selection = self.gate.current(self.name)
        rank = self.s.shape[1]
        room = max(1, (rank - self.shared) // self.own)
        place = torch.arange(rank)
        owner_R = torch.where(place < self.shared, -1, (place - self.shared) // self.own)
        own = owner_R == selection.tailor_index % room
        mask_BR = (owner_R < 0) | (own & (selection.weight != 0))
        x_BTI = x.reshape(x.shape[0], -1, x.shape[-1])
        h_BTNR = (x_BTI @ self.v.mT).unflatten(-1, (self.parts, rank))
        h_BTNR = h_BTNR * (self.s * mask_BR[:, None, None].to(self.s.dtype))
        outputs = [h @ u for h, u in zip(h_BTNR.unbind(2), self.u, strict=True)]
        y = torch.cat(outputs, dim=-1) if self.parts > 1 else outputs[0]
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], -1)


class PerClassLoop(nn.Module):
    """One factored product a class present: its samples together, learngene and tailor side by side."""

    def __init__(self, layer: KindLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        selection = layer.gate.current(layer.name)
        key_B = torch.where(selection.weight[:, 0] != 0, selection.tailor_index[:, 0], -1)
        y = x.new_empty(*x.shape[:-1], layer.out_features)
        for key in key_B.unique().tolist():
            samples = (key_B == key).nonzero().flatten()
            parts = layer.learngene()
            if key >= 0:
                row = {name: piece[key] for name, piece in selection.tailors.items()}
                parts = [
                    Components(*(torch.cat(pair) for pair in zip(shared, own, strict=True)))
                    for shared, own in zip(parts, layer.tailor(row), strict=True)
                ]
            whole = join_parts(parts)
            h = (x[samples] @ whole.v.mT) * whole.s
            ranks = [part.rank for part in parts]
            found = [left @ part.u for left, part in zip(h.split(ranks, dim=-1), parts, strict=True)]
            y_class = torch.cat(found, dim=-1)
            y = y.index_copy(0, samples, y_class if layer.bias is None else y_class + layer.bias)
        return y


def with_layers(model: Decomposable, make: type[MaskedFullRank] | type[PerClassLoop]) -> Decomposable:
    """The model with every gated layer computed another way."""
    for name, layer in model.layers.items():
        model.module.set_submodule(name, make(layer))
    return model
