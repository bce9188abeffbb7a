"""Controls in pre-training: a thin model without classes, and a dense one of as many numbers."""

import math

import pytest
import torch

from kindgene import KindConfig, TrainConfig, load_digits, make_decomposable, train
from kindgene.transfer.pretraining import dense_control, low_rank_control, stored_at, width_for


def seeded():
    return torch.Generator().manual_seed(0)


def test_thin_pairs_of_all_targets(make_dense):
    """As many components a matrix as KIND computes with; s apart, as many numbers as a model of one class."""
    dense = make_dense()
    thin = low_rank_control(dense, 5, generator=seeded())
    kind = KindConfig(num_classes=2, learngene_rank=5, tailor_rank=1, targets="paper+adaln", init="svd")
    model = make_decomposable(make_dense(), kind)
    learngene = sum(value.numel() for value in model.module.parameters())
    scales = sum(layer.s.numel() for layer in model.layers.values())
    rows = 2 * 16  # of the classes, which are in the bank there
    assert sum(value.numel() for value in thin.parameters()) == learngene - scales + rows
    assert thin.config.low_rank["blocks.0.attn.qkv"] == [5, 5, 5]
    assert (thin.num_classes, thin.class_names) == (2, ("0", "1"))


@pytest.mark.parametrize("targets", ["paper", "paper+adaln"])
def test_thin_models_train(make_dense, targets):
    thin = low_rank_control(make_dense(), 4, targets=targets, generator=seeded())
    result = train(thin, load_digits().subset(("0", "1")), TrainConfig(steps=2, batch_size=8))
    assert math.isfinite(result.final_loss)
    assert ("blocks.0.adaLN_modulation.1" in thin.config.low_rank) == (targets == "paper+adaln")


def test_the_width_is_the_nearest(make_dense):
    dense = make_dense()
    step = math.lcm(4, dense.config.num_heads)
    assert width_for(dense, stored_at(dense, step)) == step
    for width in (step, 3 * step):
        stored, gap = stored_at(dense, width), stored_at(dense, width + step) - stored_at(dense, width)
        assert width_for(dense, stored + gap // 2) == width
        assert width_for(dense, stored + gap // 2 + 1) == width + step


def test_widths_that_the_heads_divide(make_dense):
    dense = make_dense(hidden_size=24, num_heads=6)
    assert width_for(dense, stored_at(dense, 36)) == 36
    assert dense_control(dense, stored_at(dense, 24) + 1).config.hidden_size == 24


def test_a_dense_model_of_that_size(make_dense):
    dense = make_dense()
    control = dense_control(dense, 40_000, generator=seeded())
    width = width_for(dense, 40_000)
    assert control.config.hidden_size == width > 16
    assert sum(value.numel() for value in control.parameters()) == stored_at(dense, width)
    assert (control.config.depth, control.config.num_heads) == (2, dense.config.num_heads)
    again = dense_control(dense, 40_000, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(control.parameters(), again.parameters(), strict=True))


def test_refusals(make_dense):
    with pytest.raises(ValueError, match=r"at least .* parameters, more than 10"):
        width_for(make_dense(), 10)
    with pytest.raises(ValueError, match="rank 17"):
        low_rank_control(make_dense(), 17)
