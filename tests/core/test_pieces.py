"""A model as plain tensors: taking it apart, canonical form, putting it together, and what does not fit."""

import pytest
import torch

from kindgene.core.components import canonical
from kindgene.core.pieces import Pieces, canonical_pieces, canonical_state, join, layer_components, split
from kindgene.core.pieces import with_components as with_parts


def ranks_of(model):
    return {name: layer.ranks for name, layer in model.layers.items()}


def tailor_ranks_of(model):
    return {name: layer.tailor_ranks for name, layer in model.layers.items()}


def test_what_is_shared_goes_to_the_learngene_and_the_rest_to_its_class(toy_model):
    pieces = split(toy_model(gate_map=[1, 0, 1]))
    assert pieces.learngene.keys() == {
        *("first.u", "first.s", "first.v", "first.bias"),
        *("last.weight", "last.bias", "table.null_row"),
    }
    assert [set(tailor) for tailor in pieces.tailors] == [{"first.u", "first.s", "first.v"}] * 2
    assert [set(rows) for rows in pieces.labels] == [{"table"}] * 3


def test_pieces_are_copies(toy_model):
    model = toy_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pieces = split(model)
    for state in (pieces.learngene, *pieces.tailors, *pieces.labels):
        for value in state.values():
            assert not value.requires_grad
            value.fill_(-1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_label_tables_is_taken_apart_and_put_together_too(toy_model):
    model = toy_model(class_rows=[])
    other = toy_model(class_rows=[])
    pieces = split(model)
    assert pieces.labels == [{}, {}, {}]
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
    assert join(other, pieces) is other
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: Pieces(p.learngene, p.tailors[:2], p.labels), "2 tailors do not fit a model of 3"),
        (lambda p: Pieces(p.learngene, p.tailors, p.labels[:1]), "1 label rows do not fit a model of 3"),
        (
            lambda p: Pieces(without(p.learngene, "last.bias"), p.tailors, p.labels),
            r"learngene: missing \['last\.bias'\], unexpected nothing",
        ),
        (
            lambda p: Pieces({**p.learngene, "more": torch.zeros(1)}, p.tailors, p.labels),
            r"learngene: missing nothing, unexpected \['more'\]",
        ),
        (
            lambda p: Pieces({**p.learngene, "last.bias": torch.zeros(5)}, p.tailors, p.labels),
            r"learngene: last\.bias has shape \[5\], expected \[4\]",
        ),
        (
            lambda p: Pieces(p.learngene, [*p.tailors[:2], without(p.tailors[2], "first.s")], p.labels),
            r"tailor 2: missing \['first\.s'\], unexpected nothing",
        ),
        (
            lambda p: Pieces(p.learngene, [*p.tailors[:2], {**p.tailors[2], "first.s": torch.zeros(1)}], p.labels),
            r"tailor 2: first\.s has shape \[1\], expected \[2\]",
        ),
        (
            lambda p: Pieces(p.learngene, p.tailors, [*p.labels[:2], {}]),
            r"label rows of class 2: missing \['table'\], unexpected nothing",
        ),
        (
            lambda p: Pieces(p.learngene, p.tailors, [*p.labels[:2], {"table": torch.zeros(7)}]),
            r"label rows of class 2: table has shape \[7\], expected \[6\]",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_the_model_left_alone(toy_model, change, message):
    model = toy_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pieces = split(model)
    for state in (pieces.learngene, *pieces.tailors, *pieces.labels):
        for value in state.values():
            value.add_(1)
    with pytest.raises(ValueError, match=f"^{message}$"):
        join(model, change(pieces))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_target_s_components_are_taken_out_and_put_back_bit_for_bit(dit):
    model = dit.model(depth=1)
    name = "blocks.0.attn.qkv"
    for state, ranks in (
        (split(model).learngene, model.layers[name].ranks),
        (split(model).tailors[2], model.layers[name].tailor_ranks),
    ):
        parts = layer_components(state, name, ranks)
        assert [part.rank for part in parts] == list(ranks)
        again = with_parts(state, name, parts)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], value) for key, value in state.items())
        doubled = with_parts(state, name, [part._replace(s=2 * part.s) for part in parts])
        assert torch.equal(doubled[f"{name}.s"], 2 * state[f"{name}.s"])
        assert {key for key in state if not torch.equal(doubled[key], state[key])} == {f"{name}.s"}


def test_canonical_pieces_are_canonical_target_by_target_and_part_by_part(dit):
    model = dit.model(depth=1)
    pieces = split(model)
    form = canonical_pieces(pieces, ranks_of(model), tailor_ranks_of(model))
    assert form.labels is pieces.labels
    untouched = {key for key in pieces.learngene if key.rpartition(".")[0] not in model.layers or key.endswith("bias")}
    assert all(torch.equal(form.learngene[key], pieces.learngene[key]) for key in untouched)
    before = [(pieces.learngene, ranks_of(model)), *((tailor, tailor_ranks_of(model)) for tailor in pieces.tailors)]
    for (old, ranks), new in zip(before, [form.learngene, *form.tailors], strict=True):
        assert new.keys() == old.keys()
        for name in ranks:
            found, raw = layer_components(new, name, ranks[name]), layer_components(old, name, ranks[name])
            for part, given in zip(found, raw, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(part, canonical(given), strict=True))


def test_canonical_form_keeps_the_dtype_of_a_state(toy_model):
    model = toy_model(torch.bfloat16)
    state = split(model).tailors[0]
    form = canonical_state(state, tailor_ranks_of(model))
    assert {value.dtype for value in form.values()} == {torch.bfloat16}
    assert not torch.equal(form["first.s"], state["first.s"])
