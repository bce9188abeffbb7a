"""From a budget to a `Plan`: what every part could keep, at what cost and loss, and what is chosen (`budget.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kindgene.pool.budget import Budget, Floats, Item, choose
from kindgene.pool.cost import CostModel, Rank
from kindgene.pool.parts import Part
from kindgene.pool.plan import Form, Plan

PartKey = tuple[str, int]
Number = TypeVar("Number")
TAILOR = -1
"""Stands for a target's tailors in the place of a part's index: its parts are multiplied together, at one rank."""


@dataclass(frozen=True, eq=False)
class Importance:
    """What each component is worth: (target, part) -> the learngene's [G] and the tailors' [K], float64, all >= 0.

    `additive`: in one unit over all parts (``"output"``); not so, shares of each part's own energy (``"energy"``).
    """

    measure: str
    values: Mapping[PartKey, tuple[Tensor, Tensor]]
    additive: bool


def energy(parts: Sequence[Part]) -> Importance:
    """Each component's share of its own matrix's energy: needs no data (singular values are all there is to it)."""
    values: dict[PartKey, tuple[Tensor, Tensor]] = {}
    for part in parts:
        shared, own = part.squared_singular_values()
        whole = float(shared.sum() + own.sum()) or 1.0
        values[part.target, part.index] = (shared / whole, own / whole)
    return Importance("energy", values, additive=False)


def make_plan(
    costs: CostModel,
    classes: Sequence[str],
    form: Form,
    dtype: str,
    budget: Budget,
    importance: Importance,
) -> Plan:
    """The plan of a model within the budget (its latency apart). ImpossibleBudgetError names the smallest model."""
    limits = {name.removeprefix("max_"): limit for name, limit in budget.limits().items() if name != "max_latency_ms"}
    macs = "macs" in limits
    items = _items(costs, importance, form, macs)
    fixed = (costs.fixed, costs.probe.fixed_macs if macs else 0, costs.fixed * costs.itemsize)
    chosen = choose(items, fixed, limits, additive=importance.additive)
    ranks = [chosen[part.target, part.index] for part in costs.parts]
    tailor_ranks = []
    if costs.gated:
        tailor_ranks = [min(part.tailor_rank, chosen[part.target, TAILOR] or 0) for part in costs.parts]
    return Plan(
        learngene_id=costs.config.learngene_id,
        classes=tuple(classes),
        form=form,
        dtype=dtype,
        ranks=_by_target(costs.parts, ranks),
        tailor_ranks=_by_target(costs.parts, tailor_ranks) if costs.gated else {},
        cost=costs.total(ranks, tailor_ranks, macs=costs.counts_macs),
        loss=_loss(costs.parts, ranks, tailor_ranks, importance),
        measure=importance.measure,
        budget=budget.limits(),
    )


def _items(costs: CostModel, importance: Importance, form: Form, macs: bool) -> list[Item]:
    items = [
        _learngene_item(costs, part, importance.values[part.target, part.index][0], form, macs) for part in costs.parts
    ]
    if costs.gated:
        targets: dict[str, list[Part]] = {}
        for part in costs.parts:
            targets.setdefault(part.target, []).append(part)
        items += [_tailor_item(costs, parts, importance, macs) for parts in targets.values()]
    return items


def _learngene_item(costs: CostModel, part: Part, worth: Tensor, form: Form, macs: bool) -> Item:
    """Choices of a part: all that it has, as components or as the dense matrix where that is less; then fewer."""
    dense, dense_bytes = costs.learngene_numbers(part, None), costs.learngene_bytes(part, None)

    def is_less(kept: int) -> bool:  # both: a thin pair in int8 has more scales than the matrix
        return costs.learngene_numbers(part, kept) < dense and costs.learngene_bytes(part, kept) < dense_bytes

    rank = part.shared.rank
    ranks: list[Rank] = [rank] if form != "dense" and is_less(rank) else [None]
    if form != "dense":
        ranks += [kept for kept in range(rank - 1, 0, -1) if is_less(kept)]
    numbers = [costs.learngene_numbers(part, kept) for kept in ranks]
    products = [costs.learngene_macs(part, kept) if macs else 0 for kept in ranks]
    tails = _tails(worth)
    losses = [0.0 if kept is None else float(tails[kept]) for kept in ranks]
    sizes = [costs.learngene_bytes(part, kept) for kept in ranks]
    return Item((part.target, part.index), tuple(ranks), _costs(numbers, products, sizes), np.array(losses))


def _tailor_item(costs: CostModel, parts: Sequence[Part], importance: Importance, macs: bool) -> Item:
    """Choices of a target's tailors, all parts at once."""
    most = max(part.tailor_rank for part in parts)
    ranks = tuple(range(most, 0, -1))
    numbers = [sum(costs.tailor_numbers(part, min(part.tailor_rank, kept)) for part in parts) for kept in ranks]
    products = [sum(costs.tailor_macs(part, kept) for part in parts) if macs else 0 for kept in ranks]
    tails = [_tails(importance.values[part.target, part.index][1]) for part in parts]
    share = 1.0 if importance.additive else 1.0 / len(parts)
    losses = [share * sum(float(tail[min(len(tail) - 1, kept)]) for tail in tails) for kept in ranks]
    sizes = [count * costs.itemsize for count in numbers]
    return Item((parts[0].target, TAILOR), ranks, _costs(numbers, products, sizes), np.array(losses))


def _costs(numbers: Sequence[int], macs: Sequence[int], sizes: Sequence[int]) -> Floats:
    """[choices, RESOURCES]."""
    return np.array(list(zip(numbers, macs, sizes, strict=True)), dtype=np.float64)


def _tails(worth: Tensor) -> Tensor:
    """tails[k] [R + 1]: what is lost when the first k components are kept."""
    return torch.cat([worth.flip(0).cumsum(0).flip(0), worth.new_zeros(1)])


def _loss(parts: Sequence[Part], ranks: Sequence[Rank], tailor_ranks: Sequence[int], importance: Importance) -> float:
    """The sum over parts of what was dropped, or the largest of them where they cannot be added up."""
    lost = []
    for index, (part, rank) in enumerate(zip(parts, ranks, strict=True)):
        shared, own = importance.values[part.target, part.index]
        dropped = float(_tails(shared)[part.shared.rank if rank is None else rank])
        if tailor_ranks:
            dropped += float(_tails(own)[tailor_ranks[index]])
        lost.append(dropped)
    return sum(lost) if importance.additive else max(lost, default=0.0)


def _by_target(parts: Sequence[Part], values: Sequence[Number]) -> dict[str, tuple[Number, ...]]:
    out: dict[str, tuple[Number, ...]] = {}
    for part, value in zip(parts, values, strict=True):
        out[part.target] = (*out.get(part.target, ()), value)
    return out
