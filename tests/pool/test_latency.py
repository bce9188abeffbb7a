"""Latency: measured on the device; a limit is met by a plan that was itself measured."""

from dataclasses import replace

import pytest

from kindgene.pool.backbones import example_inputs
from kindgene.pool.budget import Budget, ImpossibleBudgetError
from kindgene.pool.cost import Cost
from kindgene.pool.latency import fit_latency, measure_latency
from kindgene.pool.plan import Plan
from kindgene.pool.pool import Pool

PLAN = Plan(
    learngene_id="0" * 64,
    classes=("a",),
    form="gated",
    dtype="float32",
    ranks={},
    tailor_ranks={},
    cost=Cost(1, 1000, 4),
    loss=0.0,
    measure="energy",
)


def within(budget):
    """A pool whose models have 100 to 1000 multiply-adds."""
    limit = budget.limits().get("max_macs", 1000)
    if limit < 100:
        raise ImpossibleBudgetError("the smallest model has 100 multiply-adds", 100)
    return replace(PLAN, cost=Cost(1, min(1000, limit), 4))


def test_it_measures_every_backbone(double):
    model = double.model()
    inputs = example_inputs(double.backbone.name, model.module)
    assert 0 < measure_latency(model, inputs, "cpu") < 10_000


@pytest.mark.parametrize("limit", [0.21, 0.5, 0.999])
def test_the_plan_that_is_found_was_measured_and_is_the_best_to_two_percent(limit):
    measured = {}

    def latency(plan):
        return measured.setdefault(plan.cost.macs, plan.cost.macs / 1000 + 0.05)

    plan, found = fit_latency(within, latency, Budget(max_latency_ms=limit))
    assert measured[plan.cost.macs] == found <= limit
    assert plan.cost.macs >= 1000 * (limit - 0.05) - 25


def test_a_limit_that_is_met_anyway_drops_nothing():
    plan, found = fit_latency(within, lambda plan: 0.25, Budget(max_latency_ms=0.25))
    assert (plan.cost.macs, found) == (1000, 0.25)


def test_a_limit_below_the_smallest_model_is_refused_with_its_latency():
    with pytest.raises(ImpossibleBudgetError, match=r"takes 0\.15 ms"):
        fit_latency(within, lambda plan: plan.cost.macs / 1000 + 0.05, Budget(max_latency_ms=0.1))


def test_a_pool_says_what_it_measured(saved):
    plan = Pool.from_pretrained(saved).plan(["cat"], max_latency_ms=10_000.0)
    assert plan.device == "cpu"
    assert 0 < plan.latency_ms <= 10_000
    assert plan.budget == {"max_latency_ms": 10_000.0}
    assert "ms a forward on cpu" in str(plan)
    with pytest.raises(ImpossibleBudgetError, match="the smallest model"):
        Pool.from_pretrained(saved).plan(["cat"], max_latency_ms=1e-6)
