"""The gated layers by themselves: every shape and rank against the formula, and what they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene.core.bank import TailorBank
from kindgene.core.components import Components
from kindgene.core.gate import Gate, GateError
from kindgene.core.linear import CHUNK, ClassRows, KindLinear, join_parts, split_parts

LABELS = torch.tensor([2, 3, 0, 0])
WEIGHTS = torch.tensor([[0.5, 0, -1], [0, 0, 0], [1, 1, 1], [0, 2, 0]], dtype=torch.float64)


def layer_and_bank(ranks=(3,), tailor_ranks=(2,), into=5, out=6, bias=True):
    """A layer of random numbers behind a gate of its own, and a bank of three classes."""
    gate = Gate()
    layer = KindLinear(into, out, ranks, tailor_ranks, bias=bias, gate=gate, name="layer", dtype=torch.float64)
    bank = TailorBank([0, 1, 2], layer.piece_shapes, {}, torch.float64)
    gate.bind(bank.select)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*layer.parameters(), bank.tailors.rows):
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return layer, bank


def formula(layer, bank, x, gates):
    """Equation (3) for every sample: x times the matrix that its gate makes, part by part."""
    own = [layer.tailor(bank.tailors.row(c)) for c in range(3)]
    outputs = []
    for sample, gate in zip(x, gates, strict=True):
        weights = []
        for part, (u, s, v) in enumerate(layer.learngene()):
            weight = torch.einsum("ro,r,ri->oi", u, s, v)
            for c, amount in enumerate(gate):
                weight = weight + amount * torch.einsum("ro,r,ri->oi", *own[c][part])
            weights.append(weight)
        outputs.append(torch.nn.functional.linear(sample, torch.cat(weights), layer.bias))
    return torch.stack(outputs)


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


ONE_HOT = torch.eye(4, dtype=torch.float64)[LABELS, :3]


@pytest.mark.parametrize("between", [(), (1,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("labels", "gates"), [(LABELS, ONE_HOT), (WEIGHTS, WEIGHTS)], ids=["hard", "soft"])
def test_the_formula_whatever_stands_between_batch_and_features(between, bias, labels, gates):
    layer, bank = layer_and_bank(bias=bias)
    x = random(4, *between, 5)
    with layer.gate(labels):
        found = layer(x)
    assert found.shape == (4, *between, 6)
    assert close(found, formula(layer, bank, x, gates))


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 7, 8, 9, 17])), min_size=1, max_size=3),
    st.booleans(),
)
def test_the_formula_for_all_ranks_and_parts(ranks, soft):
    """Unequal parts of a fused matrix; tailors below, at and above what is multiplied at once."""
    learngene, tailor = zip(*ranks, strict=True)
    layer, bank = layer_and_bank(learngene, tailor, out=4 * len(ranks))
    assert (layer.parts, layer.part_features) == (len(ranks), 4)
    x = random(4, 2, 5)
    with layer.gate(WEIGHTS if soft else LABELS):
        found = layer(x)
    assert close(found, formula(layer, bank, x, WEIGHTS if soft else ONE_HOT))


@pytest.mark.parametrize(("share", "kept"), [(1.0, (5, 3, 1)), (0.6, (3, 2, 1)), (0.5, (3, 2, 1)), (0.01, (1, 1, 1))])
def test_a_share_of_the_learngene_is_its_first_components_rounded_up(share, kept):
    """Of every part on its own; the tailors stay whole."""
    layer, bank = layer_and_bank((5, 3, 1), (2, 9, 1))
    x = random(4, 2, 5)
    with layer.gate(LABELS, None, share):
        found = layer(x)
    with torch.no_grad():
        for part, rank in zip(layer.learngene(), kept, strict=True):
            part.s[rank:] = 0
    assert close(found, formula(layer, bank, x, ONE_HOT))


def test_input_and_output_need_not_be_contiguous():
    layer, bank = layer_and_bank()
    x = random(5, 3, 4).transpose(0, 2)
    with layer.gate(LABELS):
        found = layer(x)
    assert close(found, formula(layer, bank, x, ONE_HOT))


def test_no_input_is_changed():
    layer, bank = layer_and_bank((1, 2), (1, 9))
    x = random(4, 2, 5)
    before = [value.detach().clone() for value in (x, *layer.parameters(), bank.tailors.rows)]
    with layer.gate(LABELS):
        layer(x)
    for value, was in zip((x, *layer.parameters(), bank.tailors.rows), before, strict=True):
        assert torch.equal(value, was)


@pytest.mark.parametrize("rank", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_components_change_no_bit(rank, parts, dtype):
    """Appended to every part up to any rank, in any dtype: what makes tailors of different ranks share a bank."""
    layer, bank = layer_and_bank((2,) * parts, (rank,) * parts)
    roomy, roomy_bank = layer_and_bank((2,) * parts, (20,) * parts)
    layer.to(dtype), bank.to(dtype), roomy.to(dtype), roomy_bank.to(dtype)
    with torch.no_grad():
        roomy.load_state_dict(layer.state_dict())
        roomy_bank.tailors.rows.zero_()
        for c in range(3):
            own, room = layer.tailor(bank.tailors.row(c)), roomy.tailor(roomy_bank.tailors.row(c))
            for small, large in zip(own, room, strict=True):
                for factor, space in zip(small, large, strict=True):
                    space[:rank].copy_(factor)
    x = random(4, 3, 5).to(dtype)
    with layer.gate(LABELS), roomy.gate(LABELS):
        assert torch.equal(layer(x), roomy(x))


def test_a_layer_that_the_batch_does_not_reach_first_is_refused():
    layer, _ = layer_and_bank()
    told = r"^layer layer: the leading dimension of its input is 12, the gate was opened for a batch of 4; .*target$"
    with layer.gate(LABELS), pytest.raises(ValueError, match=told):
        layer(random(4, 3, 5).reshape(12, 5))


def test_a_layer_behind_a_closed_gate_is_refused():
    layer, _ = layer_and_bank()
    with pytest.raises(GateError, match="layer layer was reached with the class gate closed"):
        layer(random(4, 5))


def test_a_layer_describes_itself():
    layer, _ = layer_and_bank((3, 2), (2, 9), bias=False)
    assert "5, 6, learngene=[3, 2], tailor=[2, 9], bias=False" in repr(layer)
    assert repr(ClassRows(7, gate=Gate(), name="table")) == "ClassRows(7)"


def test_the_parameters_are_the_components_and_the_bias():
    layer, bank = layer_and_bank((3, 2), (2, 9))
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert shapes == {"v": (5, 5), "s": (5,), "u": (5, 3), "bias": (6,)}
    assert layer.piece_shapes == {"layer.v": (11, 5), "layer.u": (11, 3), "layer.s": (11,)}
    assert [part.rank for part in layer.tailor(bank.tailors.row(0))] == [2, 9]


# Parts kept dense, in a recombined model.


@pytest.mark.parametrize("dense", [[0], [1], [0, 2], [0, 1, 2]], ids=str)
def test_a_learngene_kept_dense_is_the_same_function(dense):
    layer, bank = layer_and_bank((3, 2, 4), (2, 9, 1))
    x = random(4, 3, 5)
    expected = formula(layer, bank, x, ONE_HOT)
    layer.keep_dense(dense)
    with layer.gate(LABELS):
        assert close(layer(x), expected)
    assert layer.ranks == tuple(None if index in dense else rank for index, rank in enumerate((3, 2, 4)))
    assert [part.rank for part in layer.learngene()] == [rank for rank in layer.ranks if rank is not None]
    assert layer.weight.shape == (2 * len(dense), 5)
    with layer.gate(LABELS, None, 0.5):  # a share is one of components: what is dense is whole
        assert close(layer(x), expected) == (dense == [0, 1, 2])


# Label rows.


def rows_and_bank():
    gate = Gate()
    table = ClassRows(4, gate=gate, name="table", dtype=torch.float64)
    bank = TailorBank([0, 1, 2], {"x": (1,)}, table.piece_shapes, torch.float64)
    gate.bind(bank.select)
    with torch.no_grad():
        table.null_row.copy_(random(4))
        bank.labels.rows.copy_(random(3, 4))
    return table, bank


def test_label_rows_of_hard_labels_are_the_class_s_or_the_null_row_bit_for_bit():
    table, bank = rows_and_bank()
    with table.gate(LABELS):
        found = table(torch.tensor([9, 9, 9, 9]))  # what the module would look up is not used
    assert torch.equal(found, torch.cat([bank.labels.rows, table.null_row.unsqueeze(0)])[LABELS])


def test_label_rows_of_soft_weights_are_their_sum_and_null_only_where_all_are_zero():
    table, bank = rows_and_bank()
    with table.gate(WEIGHTS):
        found = table(torch.zeros(4).long())
    expected = WEIGHTS @ bank.labels.rows
    expected[1] = table.null_row
    assert close(found, expected)


def test_the_null_row_learns_from_null_labels_and_label_rows_from_their_own():
    table, bank = rows_and_bank()
    with table.gate(LABELS):
        table(LABELS).sum().backward()
    assert table.null_row.grad.tolist() == [1, 1, 1, 1]
    assert bank.labels.rows.grad[:, 0].tolist() == [2, 0, 1]


def test_label_rows_behind_a_closed_gate_are_refused():
    table, _ = rows_and_bank()
    with pytest.raises(GateError, match="layer table was reached with the class gate closed"):
        table(LABELS)


# Parts.


@settings(max_examples=25)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([(), (2,)]))
def test_splitting_and_joining_parts_are_inverse_bit_for_bit(ranks, batch):
    total = sum(ranks)
    whole = Components(random(*batch, total, 3), random(*batch, total), random(*batch, total, 2))
    parts = split_parts(whole, ranks)
    assert [part.rank for part in parts] == ranks
    assert all(torch.equal(a, b) for a, b in zip(join_parts(parts), whole, strict=True))
