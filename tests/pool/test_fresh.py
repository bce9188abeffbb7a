"""Fresh tailors for new classes: what is frozen, what they start from, and which ranks they may have."""

import pytest
import torch

from kindgene.core.components import compose
from kindgene.core.pieces import layer_components
from kindgene.pool.fresh import ENERGY
from kindgene.pool.pool import Pool
from kindgene.pool.tensors import state_id


@pytest.fixture(scope="module")
def pool(saved):
    """A pool of which no tailor was read."""
    opened = Pool.from_pretrained(saved)
    return Pool(opened.config, opened.learngene, [], saved)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("start", ["random", "zero"])
def test_tailors_and_label_rows_are_trainable_and_nothing_else(pool, start):
    fresh = pool.transfer(["new", "newer"], start=start)
    assert [name for name, value in fresh.named_parameters() if value.requires_grad] == [
        "bank.tailors.rows",
        "bank.labels.rows",
    ]
    assert state_id(fresh.module.state_dict()) == pool.config.learngene_id
    assert fresh.class_names == ("new", "newer")
    assert fresh.weights == "raw"


def test_a_zero_start_is_the_unconditional_model_and_learns_from_the_first_step(pool, dit):
    fresh = pool.transfer(["new", "newer"], start="zero")
    null = dit.run(fresh, [2] * 6)
    assert torch.equal(dit.run(fresh, [0, 1, 0, 1, 0, 1]), null)
    null.sum().backward()
    assert not fresh.bank.tailors.rows.grad.any()
    dit.run(fresh, [0] * 6).pow(2).sum().backward()
    gradient = {name: piece[0] for name, piece in fresh.bank.tailors.views(fresh.bank.tailors.rows.grad).items()}
    assert all(value.any() for name, value in gradient.items() if name.endswith(".u"))
    assert not fresh.bank.tailors.rows.grad[1].any()


def test_a_random_start_has_its_share_of_the_learngene_s_variance(pool):
    fresh = pool.transfer([str(n) for n in range(200)], tailor_rank=3, start="random", generator=seeded(0))
    for target, ranks in pool.config.ranks.items():
        shared = layer_components(pool.learngene, target, ranks)
        own = fresh.layers[target].tailor(fresh.bank.tailors.views(fresh.bank.tailors.rows.detach()))
        for learngene, tailor in zip(shared, own, strict=True):
            ratio = compose(tailor).var() / compose(learngene).square().mean()
            assert abs(ratio / ENERGY - 1) < 0.15
    rows = fresh.bank.labels.rows.detach()
    assert torch.equal(rows, pool.learngene["y_embedder.embedding_table.null_row"].expand_as(rows))


def test_a_generator_alone_decides_what_is_drawn(pool):
    with torch.random.fork_rng():
        draws = [pool.transfer(["new"], generator=seeded(seed)).bank.tailors.rows for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_ranks_are_the_pool_s_or_those_asked_for(pool):
    assert {layer.tailor_ranks for layer in pool.transfer(["new"]).layers.values()} == {(4,) * 3, (4,)}
    layers = pool.transfer(["new"], tailor_rank=0.25).layers
    assert layers["blocks.0.attn.qkv"].tailor_ranks == (4, 4, 4)
    wide = pool.transfer(["new"], tailor_rank=16).layers
    assert {rank for layer in wide.values() for rank in layer.tailor_ranks} == {16}


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "tailor_rank must be at least 1, got 0 for blocks.0.attn.qkv"),
        (-2, "tailor_rank must be at least 1, got -2"),
        (17, r"tailor_rank 17 is more than .* can have: at most min\(in, out\) = 16"),
        (True, "tailor_rank must be at least 1, got True"),
        (1.5, "share of the width must lie between 0 and 1, got 1.5"),
        (float("nan"), "share of the width must lie between 0 and 1, got nan"),
        ((1, 2), "tailor_rank of blocks.0.attn.qkv has 2 entries for 3 parts"),
        ("4", "tailor_rank"),
    ],
)
def test_impossible_ranks_are_refused(pool, rank, message):
    with pytest.raises(ValueError, match=message):
        pool.transfer(["new"], tailor_rank=rank)


@pytest.mark.parametrize("start", ["zeros", None, 0])
def test_an_unknown_start_is_refused(pool, start):
    with pytest.raises(ValueError, match="start must be 'random' or 'zero', got"):
        pool.transfer(["new"], start=start)


@pytest.mark.parametrize(("asked", "message"), [([], "no class"), ("new", "a list"), (["a", "a"], "more than once")])
def test_impossible_names_are_refused(pool, asked, message):
    with pytest.raises(ValueError, match=message):
        pool.transfer(asked)


def test_a_pool_without_classes_needs_to_be_told_a_rank(dit, names, scatter):
    pool = dit.model().decompose(names)
    pool.remove(names)
    with pytest.raises(ValueError, match="no class to take a tailor rank from: give tailor_rank"):
        pool.transfer(["new"])
    pool.add(scatter(pool.transfer(["new"], tailor_rank=2)))
    assert pool.classes == ("new",)
    assert pool.recombine(["new"]).num_classes == 1
