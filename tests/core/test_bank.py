"""The tailor bank: rows cut into pieces, gathered into leaves, and selected by labels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene.core.bank import GatheredTable, RowTable, TailorBank

few = settings(max_examples=40)
SHAPES = {"a.v": (2, 3), "a.u": (2, 2), "a.s": (2,)}


def table(count=4):
    made = RowTable(count, SHAPES, torch.float64)
    with torch.no_grad():
        made.rows.copy_(torch.arange(count * 12).view(count, 12))
    return made


def bank(tailor_of=(0, 1, 2, 3), labels=True):
    made = TailorBank(tailor_of, SHAPES, {"table": (3,)} if labels else {}, torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for rows in (made.tailors.rows, made.labels.rows):
            rows.copy_(torch.randn(rows.shape, generator=generator, dtype=torch.float64))
    return made


# Rows.


def test_a_row_is_one_contiguous_stretch_of_all_its_pieces():
    made = table()
    assert made.rows.shape == (4, 12)
    assert made.count == 4
    views = made.views(made.rows)
    assert {name: tuple(view.shape) for name, view in views.items()} == {n: (4, *s) for n, s in SHAPES.items()}
    assert views["a.v"][1].flatten().tolist() == [12, 13, 14, 15, 16, 17]
    assert views["a.u"][1].flatten().tolist() == [18, 19, 20, 21]
    assert views["a.s"][1].tolist() == [22, 23]


def test_writing_to_a_row_s_pieces_writes_to_the_table_and_to_no_other_row():
    made = table()
    before = made.rows.detach().clone()
    made.row(2)["a.u"].fill_(-1)
    assert (made.rows[2, 6:10] == -1).all()
    before[2, 6:10] = -1
    assert torch.equal(made.rows, before)


# Gathering.


@few
@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 9))
def test_gathering(wanted, more):
    """Each row wanted once, ascending, then zeros of an id that no row has; a leaf that shares no memory."""
    made, distinct = table(6), sorted(set(wanted))
    size = len(distinct) + more
    found = made.gather(torch.tensor(wanted, dtype=torch.long), size)
    assert found.values.shape == (min(size, 6), 12)
    assert found.present.tolist() == distinct
    assert found.ids[found.count :].tolist() == [6] * (min(size, 6) - len(distinct))
    assert torch.equal(found.values[: found.count], made.rows[distinct])
    assert not found.values[found.count :].any()
    assert found.values.is_leaf
    assert found.values.requires_grad
    with torch.no_grad():
        found.values.fill_(-7)
    assert (made.rows >= 0).all()


@few
@given(st.sets(st.integers(0, 8), max_size=6), st.integers(0, 3), st.lists(st.integers(0, 8), min_size=1, max_size=9))
def test_slots_say_where_a_row_stands_or_point_out_of_range(present, padding, wanted):
    ids = torch.tensor([*sorted(present), *[9] * padding], dtype=torch.long)
    found = GatheredTable(ids, torch.zeros(ids.numel(), 2), len(present), ids[: len(present)])
    slots = found.slots(torch.tensor([wanted, wanted]).mT)  # any shape, any strides
    expected = [ids.tolist().index(row) if row in present else ids.numel() for row in wanted]
    assert slots.tolist() == [[slot, slot] for slot in expected]


def test_more_rows_than_there_is_room_for_are_refused():
    with pytest.raises(ValueError, match="3 different rows do not fit in a gather of 2"):
        table().gather(torch.tensor([0, 1, 3]), 2)


def test_a_frozen_table_gathers_frozen_rows():
    made = table()
    made.rows.requires_grad_(False)
    assert not made.gather(torch.tensor([1]), 2).values.requires_grad


def test_the_bank_gathers_tailors_and_label_rows_of_the_classes_present():
    made = bank((1, 0, 1, 2))
    rows = made.gather(torch.tensor([2, 4, 0, 2]))
    assert rows.tailors.present.tolist() == [1]
    assert rows.labels.present.tolist() == [0, 2]
    assert rows.tailors.values.shape[0] == 3  # four labels, but there are but three tailors
    assert rows.labels.values.shape[0] == 4
    weights = torch.tensor([[0.0, 0.5, 0, 0], [0, 0, 0, -1]])
    rows = made.gather(weights, 2)
    assert rows.tailors.present.tolist() == [0, 2]
    assert rows.labels.present.tolist() == [1, 3]


def test_null_labels_need_no_row():
    rows = bank().gather(torch.tensor([4, 4, 4]))
    assert rows.tailors.count == rows.labels.count == 0
    assert rows.tailors.values.shape[0] == 3


@pytest.mark.parametrize("size", [3, 4, 9])
def test_shapes_do_not_depend_on_the_classes_present(size):
    shapes = set()
    for labels in ([0, 0, 0, 0], [4, 4, 4, 4], [0, 1, 2, 4]):
        rows = bank().gather(torch.tensor(labels), size)
        shapes.add((rows.tailors.values.shape, rows.labels.values.shape))
    assert shapes == {((min(size, 4), 12), (min(size, 4), 3))}


# Selecting.


def naive_row(pieces, index, weight, name):
    return sum(weight[m] * pieces[name][index[m]] for m in range(len(index)))


label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=7)
maps = st.sampled_from([(0, 1, 2, 3), (1, 0, 1, 2), (0, 0, 0, 0)])


@few
@given(label_lists, maps, st.booleans(), st.booleans())
def test_hard_labels_select_the_class_s_tailor_and_label_row(labels, tailor_of, gathered, narrow):
    made = bank(tailor_of)
    asked = torch.tensor(labels, dtype=torch.int32 if narrow else torch.int64)
    chosen = made.select(asked, made.gather(asked) if gathered else None)
    assert chosen.batch == len(labels)
    assert chosen.tailor_index.shape == chosen.label_index.shape == chosen.weight.shape == (len(labels), 1)
    for i, label in enumerate(labels):
        assert chosen.weight[i].item() == float(label != 4)
        if label != 4:
            row = naive_row(chosen.labels, chosen.label_index[i], chosen.weight[i], "table")
            assert torch.equal(row, made.labels.rows[label])
            own = naive_row(chosen.tailors, chosen.tailor_index[i], chosen.weight[i], "a.u")
            assert torch.equal(own, made.tailors.views(made.tailors.rows)["a.u"][tailor_of[label]])


weight_rows = st.lists(st.lists(st.sampled_from([0.0, 0.5, -1.0, 2.0]), min_size=4, max_size=4), min_size=1, max_size=5)


@few
@given(weight_rows, maps, st.booleans())
def test_soft_weights_select_what_is_not_zero(weights, tailor_of, gathered):
    made = bank(tailor_of)
    asked = torch.tensor(weights, dtype=torch.float32)
    chosen = made.select(asked, made.gather(asked) if gathered else None)
    most = max(1, *(sum(value != 0 for value in row) for row in weights))
    assert chosen.weight.shape == (len(weights), most)
    pieces = made.tailors.views(made.tailors.rows)["a.v"]
    for i, row in enumerate(weights):
        expected = sum(value * made.labels.rows[c] for c, value in enumerate(row))
        found = naive_row(chosen.labels, chosen.label_index[i], chosen.weight[i], "table")
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
        expected = sum(value * pieces[tailor_of[c]] for c, value in enumerate(row))
        found = naive_row(chosen.tailors, chosen.tailor_index[i], chosen.weight[i], "a.v")
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_weights_have_the_bank_s_dtype():
    assert bank().select(torch.tensor([0])).weight.dtype == torch.float64
    assert bank().select(torch.ones(1, 4, dtype=torch.bfloat16)).weight.dtype == torch.float64


def test_soft_weights_that_are_zero_get_no_gradient():
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 2.0, 0.0]], requires_grad=True)
    (bank().select(weights).weight * 3).sum().backward()
    assert torch.equal(weights.grad, 3.0 * (weights != 0))


@pytest.mark.parametrize("labels", [True, False], ids=["with label rows", "without"])
@pytest.mark.parametrize("asked", [torch.tensor([0, 4, 2, 3]), torch.eye(4)[[0, 2, 3, 3]]], ids=["hard", "soft"])
def test_rows_that_lack_a_class_are_refused(labels, asked):
    made = bank((1, 0, 1, 2), labels)
    rows = made.gather(torch.tensor([0, 4, 1]), 4)
    with pytest.raises(
        ValueError, match=r"^rows= hold \[0, 1\] but this batch needs \[2\]: gather the labels of every"
    ):
        made.select(asked, rows)


def test_a_class_whose_tailor_is_there_but_not_its_label_row_is_refused():
    made = bank((0, 0, 1, 2))
    with pytest.raises(ValueError, match=r"rows= hold \[0\] but this batch needs \[1\]"):
        made.select(torch.tensor([1]), made.gather(torch.tensor([0])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 5]), r"labels must be 0\.\.3, or 4 for the null class; found 5"),
        (torch.tensor([0, -1]), r"labels must be 0\.\.3, or 4 for the null class; found -1"),
        (torch.tensor([True]), r"labels must be int64 class ids or floating soft weights, got torch\.bool"),
        (torch.tensor([1], dtype=torch.uint8), "labels must be int64 class ids or floating soft weights, got torch.ui"),
        (torch.tensor([1j]), "labels must be int64 class ids or floating soft weights, got torch.complex64"),
        (torch.zeros(2, 1).long(), r"labels must be \[batch\] with at least one sample, got shape \[2, 1\]"),
        (torch.tensor(1), r"labels must be \[batch\] with at least one sample, got shape \[\]"),
        (torch.zeros(0).long(), r"labels must be \[batch\] with at least one sample, got shape \[0\]"),
        (torch.zeros(4), r"soft gate weights must be \[batch, 4\] \(one weight a class, none for null\), .* \[4\]"),
        (
            torch.zeros(2, 5),
            r"soft gate weights must be \[batch, 4\] \(one weight a class, none for null\), .* \[2, 5\]",
        ),
        (
            torch.zeros(0, 4),
            r"soft gate weights must be \[batch, 4\] \(one weight a class, none for null\), .* \[0, 4\]",
        ),
        (torch.tensor([[0, 0, 0, torch.nan]]), "soft gate weights must be finite"),
        (torch.tensor([[0, 0, 0, torch.inf]]), "soft gate weights must be finite"),
        ([0, 1], "labels must be a tensor of class ids or of soft weights, got list"),
        (2, "labels must be a tensor of class ids or of soft weights, got int"),
    ],
)
def test_labels_that_no_gate_can_mean_are_refused_in_one_line(labels, message):
    made = bank()
    for use in (made.select, made.gather):
        with pytest.raises(ValueError, match=f"^{message}") as refusal:
            use(labels)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_no_share_and_more_than_all_of_the_learngene_are_refused(share):
    with pytest.raises(
        ValueError, match=rf"^the share of the learngene must lie above 0 and be at most 1, got {share}$"
    ):
        bank().select(torch.tensor([0]), share=share)


def test_only_tables_that_hold_anything_are_tables():
    assert list(bank().tables) == ["tailors", "labels"]
    assert list(bank(labels=False).tables) == ["tailors"]
    assert bank(labels=False).num_classes == 4
    assert bank(labels=False).labels.row(1) == {}


def test_the_map_from_class_to_tailor_is_configuration_not_state():
    assert list(bank().state_dict()) == ["tailors.rows", "labels.rows"]


@few
@given(st.sets(st.integers(0, 5), min_size=1, max_size=5), st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_a_table_that_holds_some_rows_gathers_them_by_their_own_ids(held, wanted):
    whole, part = table(6), table(6)
    part.hold(torch.tensor(sorted(held)))
    assert part.rows.shape == (len(held), 12)
    assert part.count == 6
    if not set(wanted) <= held:
        with pytest.raises(ValueError, match=rf"holds {len(held)} of 6 rows, and not"):
            part.gather(torch.tensor(wanted), 9)
        return
    mine, all_of_it = part.gather(torch.tensor(wanted), 6), whole.gather(torch.tensor(wanted), 6)
    assert torch.equal(mine.ids, all_of_it.ids)
    assert torch.equal(mine.values, all_of_it.values)
    assert torch.equal(part.rows[mine.positions], whole.rows[all_of_it.positions])
    assert torch.equal(part.row(wanted[0])["a.v"], whole.row(wanted[0])["a.v"])


def test_a_bank_that_holds_some_rows_is_not_used_without_gathering_them():
    made = bank((1, 0, 1, 2))
    made.tailors.hold(torch.tensor([1]))
    made.labels.hold(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="holds the tailors of its own classes only: give rows="):
        made.select(torch.tensor([0, 2]))
    made.select(torch.tensor([0, 2]), made.gather(torch.tensor([0, 2])))
