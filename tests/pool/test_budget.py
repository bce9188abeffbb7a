"""The greedy planner: limits are kept, little is lost, what fits is given back, the impossible is named."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene.pool.budget import RESOURCES, Budget, ImpossibleBudgetError, Item, choose


def item(name, costs, losses):
    """Costs of one resource, as all three resources."""
    every = np.array([[cost, 2 * cost, 4 * cost] for cost in costs], float)
    return Item((name, 0), tuple(range(len(costs), 0, -1)), every, np.array(losses, float))


@st.composite
def items(draw):
    made = []
    for index in range(draw(st.integers(1, 4))):
        steps = draw(st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 5)), min_size=1, max_size=4))
        costs = list(itertools.accumulate((size for size, _ in steps), initial=1))[::-1]
        losses = list(itertools.accumulate((loss for _, loss in steps), initial=0.0))
        made.append(item(str(index), costs, losses))
    return made


def totals(items, chosen):
    at = [one.ranks.index(chosen[one.key]) for one in items]
    cost = sum(one.costs[place] for one, place in zip(items, at, strict=True))
    return cost, sum(one.losses[place] for one, place in zip(items, at, strict=True)), at


@settings(max_examples=60)
@given(items(), st.floats(0, 1), st.booleans(), st.sampled_from(RESOURCES))
def test_a_limit_that_is_possible_is_kept_and_nothing_more_would_fit(items, share, additive, resource):
    place = RESOURCES.index(resource)
    least, most = sum(one.costs[-1, place] for one in items), sum(one.costs[0, place] for one in items)
    limit = math.floor(least + share * (most - least))
    chosen = choose(items, (0, 0, 0), {resource: limit}, additive=additive)
    cost, _, at = totals(items, chosen)
    assert cost[place] <= limit
    for one, here in zip(items, at, strict=True):
        assert here == 0 or cost[place] + one.costs[here - 1, place] - one.costs[here, place] > limit


@settings(max_examples=60)
@given(items(), st.floats(0, 1))
def test_losses_are_near_the_least_there_can_be(items, share):
    """No choice within the limit loses less than the greedy one by more than a single step does (knapsack bound)."""
    least, most = sum(one.costs[-1, 0] for one in items), sum(one.costs[0, 0] for one in items)
    limit = math.floor(least + share * (most - least))
    _, loss, _ = totals(items, choose(items, (0, 0, 0), {"parameters": limit}, additive=True))
    every = itertools.product(*(range(len(one.ranks)) for one in items))
    fitting = [
        sum(one.losses[i] for one, i in zip(items, at, strict=True))
        for at in every
        if sum(one.costs[i, 0] for one, i in zip(items, at, strict=True)) <= limit
    ]
    largest = max(one.losses[-1] for one in items)
    assert loss <= min(fitting) + largest + 1e-9


def test_nothing_is_dropped_without_a_limit_or_under_one_that_is_met():
    made = [item("a", [5, 3, 1], [0, 1, 2]), item("b", [4, 1], [0, 1])]
    for limits in ({}, {"parameters": 9}, {"macs": 18, "bytes": 36}):
        assert choose(made, (0, 0, 0), limits, additive=True) == {("a", 0): 3, ("b", 0): 2}


def test_the_cheapest_quality_goes_first_and_fixed_costs_count():
    made = [item("dear", [10, 5], [0, 8]), item("cheap", [10, 5], [0, 1])]
    assert choose(made, (100, 0, 0), {"parameters": 115}, additive=True) == {("dear", 0): 2, ("cheap", 0): 1}


def test_losses_in_one_unit_are_weighed_by_what_they_free_and_others_are_not():
    made = [item("large", [20, 2], [0, 3]), item("small", [3, 2], [0, 1])]
    assert choose(made, (0, 0, 0), {"parameters": 22}, additive=True) == {("large", 0): 1, ("small", 0): 2}
    assert choose(made, (0, 0, 0), {"parameters": 22}, additive=False) == {("large", 0): 2, ("small", 0): 1}


def test_several_limits_are_met_at_once():
    costs = np.array([[10, 0, 1], [1, 0, 1]], float)
    narrow = Item(("numbers", 0), (2, 1), costs, np.array([0.0, 1.0]))
    products = Item(("products", 0), (2, 1), costs[:, [1, 0, 2]], np.array([0.0, 1.0]))
    both = choose([narrow, products], (0, 0, 0), {"parameters": 5, "macs": 5}, additive=True)
    assert both == {("numbers", 0): 1, ("products", 0): 1}
    assert choose([narrow, products], (0, 0, 0), {"macs": 5}, additive=True) == {("numbers", 0): 2, ("products", 0): 1}


@pytest.mark.parametrize(("resource", "place"), [("parameters", 0), ("macs", 1), ("bytes", 2)])
def test_the_impossible_is_refused_with_the_smallest_named(resource, place):
    made = [item("a", [5, 3], [0, 1])]
    with pytest.raises(ImpossibleBudgetError, match="the smallest model has") as refused:
        choose(made, (10, 10, 10), {resource: 2}, additive=True)
    assert refused.value.smallest == 10 + (3, 6, 12)[place]
    assert choose(made, (10, 10, 10), {resource: refused.value.smallest}, additive=True) == {("a", 0): 1}


@pytest.mark.parametrize("name", ["max_parameters", "max_macs", "max_bytes", "max_latency_ms"])
@pytest.mark.parametrize("value", [0, -3, "1M", True, math.inf, math.nan])
def test_limits_that_are_no_numbers_above_zero_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        Budget(**{name: value})


def test_a_fraction_is_a_latency_only():
    assert Budget(max_latency_ms=0.5).limits() == {"max_latency_ms": 0.5}
    with pytest.raises(ValueError, match="whole number"):
        Budget(max_parameters=0.5)
