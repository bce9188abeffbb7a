"""`Decomposable`: how it is called, what it knows of itself, freezing and checkpointing."""

import pytest
import torch
from torch import nn

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.gate import GateError

LABELS = torch.tensor([0, 3, 2, 2])


@pytest.fixture
def x():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# Calling.


def test_labels_by_position_by_keyword_and_by_hand_are_the_same(toy_model, x):
    model = toy_model()
    expected = model(x, LABELS)
    assert torch.equal(model(x, y=LABELS), expected)
    assert torch.equal(model(y=LABELS, x=x), expected)
    with model.gate(LABELS):
        assert torch.equal(model.module(x, LABELS), expected)
    assert not torch.equal(model(x, LABELS.flip(0)), expected)


def test_soft_weights_come_the_same_ways(toy_model, x):
    model = toy_model()
    weights = torch.eye(4, dtype=torch.float64)[LABELS, :3]
    expected = model(x, LABELS)
    for found in (model(x, weights), model(x, y=weights), model(x, weights.float())):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_labels_by_keyword_alone():
    """An argument before which others may come in any number is never looked for among them."""

    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 8)

        def forward(self, *inputs, y=None):
            return self.first(sum(inputs))

    ranks = {"num_classes": 3, "learngene_rank": 2, "tailor_rank": 1}
    config = KindConfig(**ranks, targets=["first"], label_argument="y", init="random")
    model = make_decomposable(Keyword(), config)
    x = torch.randn(4, 6)
    labels = torch.tensor([0, 1, 2, 3])
    assert torch.equal(model(x, x, y=labels), model(2 * x, y=labels))
    with pytest.raises(GateError, match="closed"):
        model(x, x)
    with model.gate(labels):
        assert torch.equal(model(x, x), model(2 * x))


def test_a_module_without_a_label_argument_is_opened_by_hand(toy_model, x):
    model = toy_model(label_argument="", class_rows=[])
    with pytest.raises(GateError, match="closed"):
        model(x, LABELS)
    with model.gate(LABELS):
        first = model(x, LABELS)
        assert torch.equal(model(x, LABELS), first)
    rows = model.bank.gather(LABELS)
    with model.gate(LABELS, rows):
        assert torch.equal(model(x, LABELS), first)
    told = r"^rows= and learngene_share= need the labels in the same call; by hand: `with model\.gate\(labels, rows"
    for options in ({"rows": rows}, {"learngene_share": 0.5}):
        with pytest.raises(ValueError, match=told):
            model(x, LABELS, **options)
    with model.gate(LABELS, learngene_share=0.5):
        by_hand = model(x, LABELS)
    assert not torch.equal(by_hand, first)


def test_a_share_of_the_learngene_comes_the_same_ways(toy_model, x):
    model = toy_model()
    expected = model(x, LABELS, learngene_share=0.5)
    assert not torch.equal(expected, model(x, LABELS))
    assert torch.equal(model(x, y=LABELS, learngene_share=0.5), expected)
    with model.gate(LABELS, None, 0.5):
        assert torch.equal(model.module(x, LABELS), expected)
    assert torch.equal(model(x, LABELS, rows=model.bank.gather(LABELS), learngene_share=0.5), expected)


def test_soft_weights_are_refused_where_the_module_reads_labels_itself(toy_model, x):
    model = toy_model(class_rows=[])
    weights = torch.rand(4, 3, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"^Toy reads the labels itself, which soft gate weights are not: name its label"
    ):
        model(x, weights)
    assert not model.gate.is_open()
    assert model(x, LABELS).shape == (4, 4)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 3, 0]), torch.zeros(1, 3)])
def test_labels_of_another_batch_are_refused(toy_model, x, labels):
    model = toy_model()
    with pytest.raises(ValueError, match=f"^labels are for a batch of {len(labels)}, but the batch is of 4$"):
        model(x, labels)
    with pytest.raises(ValueError, match=f"^labels are for a batch of {len(labels)}, but the batch is of 4$"):
        model(y=labels, x=x)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], 0, torch.tensor([0, 4, 0, 0]), torch.tensor([True] * 4)])
def test_what_is_no_label_is_refused_before_anything_runs(toy_model, x, labels):
    model, calls = toy_model(), []
    model.module.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"^labels must be"):
        model(x, labels)
    assert not calls
    assert not model.gate.is_open()


# What it knows.


def test_a_model_knows_its_classes_its_null_class_and_its_parts(toy_model):
    model = toy_model(gate_map=[0, 0, 1])
    assert model.num_classes == model.null_class == 3
    assert list(model.layers) == ["first"]
    assert list(model.label_tables) == ["table"]
    assert model.weights == "raw"
    assert model.class_names is None
    assert model.kind.gate_map == [0, 0, 1]


def test_configuration_and_class_names_are_the_backbone_s(dit):
    from kindgene.models.dit import DiT

    dense = DiT(**{**dit.dense(1).config, "class_names": ["a", "b", "c", "d", "e"]})
    model = make_decomposable(dense, KindConfig(num_classes=5, learngene_rank=2, tailor_rank=1))
    assert model.config is dense.config
    assert model.class_names == ("a", "b", "c", "d", "e")


def test_freezing_the_learngene_leaves_tailors_and_label_rows_to_train(toy_model, x):
    model = toy_model().freeze_learngene()
    model(x, LABELS).sum().backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert trained == {"bank.tailors.rows", "bank.labels.rows"}
    assert {name for name, value in model.named_parameters() if value.requires_grad} == trained


def test_checkpointing_that_is_not_diffusers_is_told_how(toy_model):
    with pytest.raises(ValueError, match=r"^Toy does not follow diffusers' checkpointing protocol; .*context_fn=model"):
        toy_model().enable_gradient_checkpointing()
