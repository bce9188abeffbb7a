"""Equal budgets: counts from shapes are those of models, and the rank found is the nearest there is."""

from itertools import pairwise

import pytest

from kindgene.transfer.budget import rank_for_budget, trainable_at
from kindgene.transfer.strategies import STRATEGIES, Start

NEW = ("6", "7", "8")
RANKED = [name for name, row in STRATEGIES.items() if row.ranked is not None]


def possible(name, start):
    return list(STRATEGIES[name].ranked.possible(start))


@pytest.mark.parametrize("name", RANKED)
def test_the_count_is_that_of_the_model(make, start, name):
    ranks = possible(name, start)
    for rank in {ranks[0], ranks[len(ranks) // 2], ranks[-1]}:
        for names in (NEW, NEW[:1]):
            assert trainable_at(name, names, start, rank) == make(name, rank, names).trainable


@pytest.mark.parametrize("name", RANKED)
def test_the_rank_is_the_nearest(start, name):
    ranks = possible(name, start)
    numbers = [trainable_at(name, NEW, start, rank) for rank in ranks]
    assert numbers == sorted(set(numbers))
    for budget in range(numbers[0], numbers[-1], max(1, (numbers[-1] - numbers[0]) // 60)):
        rank = rank_for_budget(name, NEW, start, budget)
        off = abs(trainable_at(name, NEW, start, rank) - budget)
        assert off == min(abs(number - budget) for number in numbers)
        assert off <= max(after - before for before, after in pairwise(numbers)) / 2
    for rank, number in zip(ranks, numbers, strict=True):
        assert rank_for_budget(name, NEW, start, number) == rank


def test_all_at_the_budget_of_kind(make, start):
    """The decisive comparison: per-class LoRA meets it exactly, shared adapters within half a rank."""
    budget = make("kind", 1).trainable
    assert rank_for_budget("class_lora", NEW, start, budget) == 1
    assert make("class_lora", 1).trainable == budget
    for name in ("lora", "dora", "pissa", "loha"):
        rank = rank_for_budget(name, NEW, start, budget)
        step = trainable_at(name, NEW, start, rank + 1) - trainable_at(name, NEW, start, rank)
        assert abs(make(name, rank).trainable - budget) <= step / 2


@pytest.mark.parametrize("name", RANKED)
def test_a_budget_out_of_reach(start, name):
    for budget in (1, 10**9):
        if name == "oft" and budget == 1:
            continue  # blocks of 2 train so little that label rows are most of it
        with pytest.raises(ValueError, match=f"{name} cannot train about {budget} numbers here: its ranks train "):
            rank_for_budget(name, NEW, start, budget)


def test_refusals(start):
    for name in ("full_finetune", "svdiff", "heur_lg"):
        with pytest.raises(ValueError, match=f"{name} has no rank"):
            rank_for_budget(name, NEW, start, 1000)
    with pytest.raises(ValueError, match="no transfer strategy 'x'"):
        trainable_at("x", NEW, start, 1)
    with pytest.raises(ValueError, match="give Start"):
        rank_for_budget("kind", NEW, Start(), 1000)
    with pytest.raises(ValueError, match="name at least one"):
        rank_for_budget("lora", (), start, 1000)
