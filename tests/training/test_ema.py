"""The lazy average of rows is the eager one; saving it changes nothing."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.models.dit import DiT
from kindgene.training.ema import EMA, averaged_weights
from kindgene.training.optimizer import row_tables, shared_parameters

CLASSES = 4


def tiny(dtype: torch.dtype = torch.float64) -> Decomposable:
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", num_classes=CLASSES, hidden_size=8, depth=1, num_heads=1)
    config = KindConfig(num_classes=CLASSES, learngene_rank=1, tailor_rank=1, targets="paper")
    return make_decomposable(dense, config).to(dtype)


@torch.no_grad()
def step(model: Decomposable, ema: EMA | None, classes: set[int], generator: torch.Generator) -> None:
    """Moves what is shared and the rows present, as an optimizer step would."""
    rows = model.bank.gather(torch.tensor([*classes, CLASSES]))
    for parameter in shared_parameters(model).values():
        parameter.add_(torch.randn(parameter.shape, generator=generator))
    for table in row_tables(model).values():
        for index in sorted(classes):
            table.rows[index] += torch.randn(table.rows.shape[1], generator=generator)
    if ema is not None:
        ema.update(rows)


@given(
    present=st.lists(st.sets(st.integers(0, CLASSES - 1)), min_size=1, max_size=30),
    decay=st.sampled_from([0.3, 0.9, 0.9999]),
)
@settings(max_examples=20)
def test_lazy_rows_are_the_eager_average(present: list[set[int]], decay: float) -> None:
    model = tiny()
    ema = EMA(model, decay)
    eager = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    for t, classes in enumerate(present, start=1):
        step(model, ema, classes, generator)
        d = min(decay, (1 + t) / (10 + t))
        for name, parameter in model.named_parameters():
            eager[name] = parameter.detach() + d * (eager[name] - parameter.detach())
    weights = ema.weights()
    assert weights.keys() == {name for name, p in model.named_parameters() if p.requires_grad and p.numel()}
    for name, average in weights.items():
        torch.testing.assert_close(average, eager[name], rtol=1e-11, atol=1e-12)


def test_a_long_absence_is_caught_up() -> None:
    model = tiny()
    ema = EMA(model, 0.999)
    generator = torch.Generator().manual_seed(3)
    step(model, ema, {0}, generator)
    start = ema.weights()["bank.tailors.rows"][0]
    row = model.bank.tailors.rows[0].detach().clone()
    product = 1.0
    for t in range(2, 3000):
        ema.update(model.bank.gather(torch.tensor([1])))
        product *= min(0.999, (1 + t) / (10 + t))
    expected = row + product * (start - row)
    torch.testing.assert_close(ema.weights()["bank.tailors.rows"][0], expected, rtol=1e-11, atol=1e-12)


def test_a_class_never_seen_keeps_its_weights_bit_for_bit() -> None:
    model = tiny(torch.float32)
    ema = EMA(model, 0.9)
    before = model.bank.tailors.rows.detach().clone()
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        step(model, ema, {0, 2}, generator)
    after = ema.weights()["bank.tailors.rows"]
    assert torch.equal(after[[1, 3]], before[[1, 3]])
    assert not torch.equal(after[[0, 2]], before[[0, 2]])


def test_looking_and_saving_change_nothing() -> None:
    batches = [{0}, {1, 2}, {0}, set(), {3}, {0, 1}]
    results = []
    for disturbed in (False, True):
        model = tiny(torch.float32)
        ema = EMA(model, 0.9)
        generator = torch.Generator().manual_seed(5)
        for classes in batches:
            step(model, ema, classes, generator)
            if disturbed:
                ema.weights()
                saved = {key: value.clone() for key, value in ema.state().items()}
                ema = EMA(model, 0.9)
                ema.load(saved, "here")
        results.append(ema.weights())
    for name, average in results[0].items():
        assert torch.equal(average, results[1][name])


def test_saved_averages_need_no_model() -> None:
    model = tiny(torch.float32)
    ema = EMA(model, 0.9)
    generator = torch.Generator().manual_seed(6)
    for classes in ({0}, {1}, {2}):
        step(model, ema, classes, generator)
    expected = ema.weights()
    found = averaged_weights(ema.state(), model.state_dict())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    ema.copy_to_model()
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    model = tiny(torch.bfloat16)
    ema = EMA(model, 0.999)
    assert {average.dtype for average in ema.weights().values()} == {torch.float32}


def test_what_is_frozen_has_no_average() -> None:
    model = tiny().freeze_learngene()
    assert EMA(model, 0.9).weights().keys() == {"bank.tailors.rows", "bank.labels.rows"}


def test_foreign_state_is_refused() -> None:
    ema = EMA(tiny(), 0.9)
    state = ema.state()
    short = {key: value for key, value in state.items() if key != "last.bank.tailors.rows"}
    with pytest.raises(ValueError, match=r"a file: last\.bank\.tailors\.rows is missing"):
        ema.load(short, "a file")
    with pytest.raises(ValueError, match="a file: foreign is unexpected"):
        ema.load({**state, "foreign": torch.zeros(1)}, "a file")
    with pytest.raises(ValueError, match=r"has shape \[9\], expected \[4\]"):
        ema.load({**state, "last.bank.tailors.rows": torch.zeros(9)}, "a file")
