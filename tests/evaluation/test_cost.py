"""Costs: parameters, bytes and multiply-adds against counts by hand and the closed formula for components."""

import pytest
import torch
from torch import nn

from kindgene import DiT, KindConfig, make_decomposable
from kindgene.core.product import CHUNK
from kindgene.evaluation.cost import Cost, count_macs, measure_cost

WIDTH, DEPTH, TOKENS, PATCH = 32, 2, 16, 4  # tiny/2 on 8x8: 16 tokens of 2x2 pixels


def tiny(**settings):
    return DiT.from_preset("tiny/2", num_classes=3, **settings)


def by_hand(depth=DEPTH, channels=1):
    """Multiply-adds of one forward of one sample through a dense tiny/2, layer by layer (Peebles and Xie)."""
    d, t = WIDTH, TOKENS
    embed = t * PATCH * channels * d
    time = 256 * d + d * d
    attention = t * d * 3 * d + 2 * t * t * d + t * d * d  # qkv; scores and their use; out
    mlp = 2 * t * d * 4 * d
    modulation = d * 6 * d  # once a sample, not a token
    last = d * 2 * d + t * d * PATCH * channels
    return embed + time + depth * (attention + mlp + modulation) + last


def targets_by_hand(g, k, adaln):
    """(dense, factored) multiply-adds of the targets: I O against (G + K)(I + O) a token, K in whole chunks."""
    k = -(-k // CHUNK) * CHUNK
    matrices = 4 * [(WIDTH, WIDTH, TOKENS)] + [(WIDTH, 4 * WIDTH, TOKENS), (4 * WIDTH, WIDTH, TOKENS)]
    matrices += [(WIDTH, 6 * WIDTH, 1)] if adaln else []
    dense = DEPTH * sum(rows * i * o for i, o, rows in matrices)
    return dense, DEPTH * sum(rows * (g + k) * (i + o) for i, o, rows in matrices)


@pytest.mark.parametrize(("depth", "channels"), [(1, 1), (2, 1), (2, 3)])
def test_a_dense_dit_by_hand(depth, channels):
    model = tiny(depth=depth, in_channels=channels)
    assert count_macs(model) == by_hand(depth, channels)


@pytest.mark.parametrize("targets", ["paper", "paper+adaln"])
@pytest.mark.parametrize(("g", "k"), [(4, CHUNK), (8, CHUNK), (3, 2 * CHUNK), (6, CHUNK - 2), (6, CHUNK + 1)])
def test_components_cost_the_closed_formula(targets, g, k):
    kind = KindConfig(num_classes=3, learngene_rank=g, tailor_rank=k, targets=targets)
    model = make_decomposable(tiny(), kind)
    dense, factored = targets_by_hand(g, k, "adaln" in targets)
    assert count_macs(model) == by_hand() - dense + factored


def test_components_cost_the_same_whatever_the_number_of_classes():
    costs = []
    for classes in (1, 3, 30):
        kind = KindConfig(num_classes=classes, learngene_rank=8, tailor_rank=4)
        costs.append(count_macs(make_decomposable(DiT.from_preset("tiny/2", num_classes=classes), kind)))
    assert len(set(costs)) == 1


def test_parameters_of_components_by_hand():
    g, k, classes = 8, 4, 3
    kind = KindConfig(num_classes=classes, learngene_rank=g, tailor_rank=k, targets="paper+adaln")
    dense = measure_cost(tiny())
    found = measure_cost(make_decomposable(tiny(), kind))
    matrices = DEPTH * [*4 * [(WIDTH, WIDTH)], (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 6 * WIDTH)]
    removed = sum(i * o for i, o in matrices)
    added = sum((g + classes * k) * (i + o + 1) for i, o in matrices)
    assert found.parameters == dense.parameters - removed + added
    fixed = TOKENS * WIDTH  # the position table
    assert found.trainable_parameters == found.parameters - fixed
    assert dense.trainable_parameters == dense.parameters - fixed


def test_bytes_follow_the_dtype():
    single = measure_cost(tiny())
    half = measure_cost(nn.Module.to(tiny(), torch.bfloat16))
    double = measure_cost(nn.Module.to(tiny(), torch.float64))
    assert (half.bytes, single.bytes, double.bytes) == tuple(single.parameters * size for size in (2, 4, 8))
    assert half.macs == single.macs == double.macs


class Tied(nn.Module):
    """Two layers with one weight, half of it frozen elsewhere, and a buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.register_buffer("ids", torch.zeros(7, dtype=torch.int64))
        self.drop = nn.Dropout()

    def forward(self, x, t, y):
        return self.drop(self.b(self.a(x)))


def test_what_is_shared_is_stored_once_and_computed_twice():
    """And a model without a config is told its shape."""
    cost = measure_cost(Tied(), (1, 3, 6))
    assert cost == Cost(parameters=36 + 5, trainable_parameters=36, macs=2 * 3 * 36, bytes=4 * 41 + 8 * 7)
    assert cost.to_dict() == {"parameters": 41, "trainable_parameters": 36, "macs": 216, "bytes": 220}


def test_frozen_parameters_are_not_trainable():
    model = make_decomposable(tiny(), KindConfig(num_classes=3, learngene_rank=8, tailor_rank=4))
    cost = measure_cost(model.freeze_learngene())
    assert cost.trainable_parameters == sum(value.numel() for value in model.bank.parameters())


def test_measuring_changes_nothing():
    model = tiny().train()
    model.blocks[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    measure_cost(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert modes["blocks.0.mlp"] is False
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(value.grad is None for value in model.parameters())


def test_modes_are_put_back_where_the_model_fails():
    model = Tied().train()
    with pytest.raises(RuntimeError):
        measure_cost(model, (1, 3, 5))
    assert all(module.training for module in model.modules())
