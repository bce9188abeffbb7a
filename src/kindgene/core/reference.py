"""The method, slow and obvious: every sample on its own, every matrix composed. The yardstick for every fast path.

Nothing here is shared with the fast path beyond the parameters: `model_reference` builds, for each sample, the plain
dense module whose weights are W = U_G diag(s_G) V_G^T + sum_c a_c U_c diag(s_c) V_c^T and runs it on that one sample.
Values and gradients (to the same parameters) are those of the definition.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kindgene.core.decomposable import Decomposable
from kindgene.core.linear import KindLinear


def compose_reference(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """sum_r s_r u_r v_r^T, one component at a time: u [R, O], s [R], v [R, I] -> [O, I]."""
    weight = torch.zeros(u.shape[1], v.shape[1], dtype=u.dtype)
    for r in range(s.shape[0]):
        weight = weight + s[r] * torch.outer(u[r], v[r])
    return weight


def weight_reference(layer: KindLinear, pieces_of: dict[int, dict[str, Tensor]], gate: dict[int, Tensor]) -> Tensor:
    """The dense matrix [O, I] of a layer for one sample whose gate gives tailor n the weight gate[n]."""
    parts = []
    start, tailor_start, dense_start = 0, 0, 0
    for rank, tailor_rank in zip(layer.ranks, layer.tailor_ranks, strict=True):
        if rank is None:  # kept dense
            assert layer.weight is not None
            weight = layer.weight[dense_start : dense_start + layer.part_features]
            dense_start += layer.part_features
        else:
            own = slice(start, start + rank)
            weight = compose_reference(layer.u[own], layer.s[own], layer.v[own])
            start += rank
        theirs = slice(tailor_start, tailor_start + tailor_rank)
        for index, amount in gate.items():
            pieces = pieces_of[index]
            u, s, v = (pieces[f"{layer.name}.{factor}"][theirs] for factor in "usv")
            weight = weight + amount * compose_reference(u, s, v)
        parts.append(weight)
        tailor_start += tailor_rank
    return torch.cat(parts)


class _ConstantRow(nn.Module):
    """Stands where the label table was: returns the one row [1, D] of the sample at hand."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(features))

    def forward(self, ids: Tensor) -> Tensor:
        return self.row.unsqueeze(0)


def dense_skeleton(model: Decomposable) -> nn.Module:
    """The plain module again: nn.Linear where the gated layers are, one constant row where the label tables are."""
    skeleton = copy.deepcopy(model.module)
    for name, layer in model.layers.items():
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None).to(layer.v.dtype)
        skeleton.set_submodule(name, linear)
    for name, table in model.label_tables.items():
        skeleton.set_submodule(name, _ConstantRow(table.features))
    return skeleton


def sample_weights(model: Decomposable, gate: dict[int, Tensor]) -> dict[str, Tensor]:
    """All parameters of the skeleton for one sample; differentiable. `gate`: class -> weight, only those not 0."""
    own = dict(model.module.named_parameters())
    layers, tables = model.layers, model.label_tables
    tailors, labels = model.bank.tailors, model.bank.labels
    tailor_of = model.bank.tailor_of.tolist()
    by_tailor: dict[int, Tensor] = {}
    for label, amount in gate.items():
        row = tailor_of[label]
        by_tailor[row] = by_tailor[row] + amount if row in by_tailor else amount
    pieces_of = {
        row: {name: view[0] for name, view in tailors.views(tailors.rows[row : row + 1]).items()} for row in by_tailor
    }
    weights: dict[str, Tensor] = {
        name: value
        for name, value in own.items()
        if name.rpartition(".")[0] not in layers and name.rpartition(".")[0] not in tables
    }
    for name, layer in layers.items():
        weights[f"{name}.weight"] = weight_reference(layer, pieces_of, by_tailor)
        if layer.bias is not None:
            weights[f"{name}.bias"] = layer.bias
    for name, table in tables.items():
        row_D: Tensor = table.null_row
        if gate:
            row_D = sum(  # type: ignore[assignment]
                amount * labels.views(labels.rows[label : label + 1])[name][0] for label, amount in gate.items()
            )
        weights[f"{name}.row"] = row_D
    return weights


def model_reference(model: Decomposable, labels: Tensor, *args: Any, **kwargs: Any) -> list[Any]:
    """Runs each sample by itself through its own dense module; one output a sample.

    Tensors among args and kwargs have the batch first; `labels` itself is among them where the module takes labels.
    `labels` [B] class ids (null: C) or soft weights [B, C].
    """
    skeleton = dense_skeleton(model)
    outputs = []
    for i in range(labels.shape[0]):
        if labels.dim() == 1:
            label = int(labels[i])
            gate = {} if label == model.null_class else {label: torch.ones((), dtype=model.bank.tailors.rows.dtype)}
        else:
            gate = {c: labels[i, c] for c in range(labels.shape[1]) if labels[i, c] != 0}
        one = [_one(value, i, labels) for value in args]
        named = {key: _one(value, i, labels) for key, value in kwargs.items()}
        outputs.append(functional_call(skeleton, sample_weights(model, gate), tuple(one), named))
    return outputs


def _one(value: Any, i: int, labels: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.zeros(1, dtype=torch.long) if value is labels and labels.dim() == 2 else value[i : i + 1]
