"""The yardstick itself, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from kindgene.core.linear import ClassRows, KindLinear
from kindgene.core.reference import (
    compose_reference,
    dense_skeleton,
    model_reference,
    sample_weights,
    weight_reference,
)

ONE = torch.ones((), dtype=torch.float64)


def test_compose_reference_by_hand():
    u = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    s = torch.tensor([2.0, 3.0])
    v = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert compose_reference(u, s, v).tolist() == [[2, 2, 0], [0, 0, 3]]


def matrices(model, name="first"):
    """The learngene's matrix and every tailor's, by einsum."""
    layer = model.layers[name]
    pieces = model.bank.tailors.views(model.bank.tailors.rows)
    own = torch.cat([torch.einsum("cro,cr,cri->coi", *part) for part in layer.tailor(pieces)], dim=1)
    return torch.cat([torch.einsum("ro,r,ri->oi", *part) for part in layer.learngene()]), own


@pytest.mark.parametrize("options", [{}, {"fused": {"first": 2}, "learngene_rank": [1, 3], "tailor_rank": [2, 1]}])
@pytest.mark.parametrize("gate", [{}, {1: 1.0}, {0: 0.5, 2: -2.0}])
def test_a_sample_s_matrix_is_the_learngene_s_and_its_tailors_by_weight(toy_model, options, gate):
    model = toy_model(**options)
    shared, own = matrices(model)
    pieces = {row: model.bank.tailors.row(row) for row in range(3)}
    found = weight_reference(model.layers["first"], pieces, {row: amount * ONE for row, amount in gate.items()})
    expected = shared + sum(amount * own[row] for row, amount in gate.items())
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_matrix_kept_dense_is_used_as_it_is(toy_model):
    model = toy_model(fused={"first": 2})
    shared, own = matrices(model)
    layer = model.layers["first"]
    layer.keep_dense([1])
    found = weight_reference(layer, {0: model.bank.tailors.row(0)}, {0: ONE})
    assert torch.allclose(found, shared + own[0], rtol=1e-12, atol=1e-12)


def test_the_skeleton_is_a_plain_module_and_the_model_stays(toy_model):
    model = toy_model()
    skeleton = dense_skeleton(model)
    assert not any(isinstance(child, KindLinear | ClassRows) for child in skeleton.modules())
    assert type(skeleton.first) is nn.Linear
    assert type(model.module.first) is KindLinear


def test_classes_that_share_a_tailor_share_its_weight_but_not_their_label_rows(toy_model):
    model = toy_model(gate_map=[0, 1, 0])
    shared, own = matrices(model)
    weights = sample_weights(model, {0: 0.5 * ONE, 2: 0.25 * ONE})
    rows = model.bank.labels.rows
    assert torch.allclose(weights["first.weight"], shared + 0.75 * own[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(weights["table.row"], 0.5 * rows[0] + 0.25 * rows[2], rtol=1e-12, atol=1e-12)
    assert torch.equal(sample_weights(model, {})["table.row"], model.module.table.null_row)


@pytest.mark.parametrize("soft", [False, True])
def test_every_sample_by_itself(toy_model, soft):
    """The toy written out: last(tanh(first(x + row))), with the gate of the definition."""
    model = toy_model(gate_map=[1, 0, 1])
    shared, own = matrices(model)
    rows, null, first, last = model.bank.labels.rows, model.module.table.null_row, model.module.first, model.module.last
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([2, 3, 1])
    gates = torch.eye(4, dtype=torch.float64)[labels, :3]
    if soft:
        labels = gates = torch.tensor([[0.5, 0, 2], [0, 0, 0], [0, -1, 0]], dtype=torch.float64)
    found = model_reference(model, labels, x, labels)
    assert len(found) == 3
    for i in range(3):
        weight = shared + sum(gates[i, c] * own[tailor] for c, tailor in enumerate([1, 0, 1]))
        row = gates[i] @ rows if gates[i].any() else null
        hidden = torch.tanh(weight @ (x[i] + row) + first.bias)
        assert torch.allclose(found[i], (last.weight @ hidden + last.bias).unsqueeze(0), rtol=1e-12, atol=1e-12)
