"""Equal budgets: the rank at which a strategy trains as many numbers as another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from kindgene.pool.names import check_class_names
from kindgene.transfer.strategies import Ranked, Start, find_strategy


def rank_for_budget(name: str, class_names: Sequence[str], start: Start, budget: int) -> int:
    """The rank (OFT: size of blocks) at which strategy `name` trains nearest to `budget` numbers; of two, the lower.

    So it is within half a step of its ranks from the budget. Raises ValueError for a strategy without rank, and for a
    budget that lies more than half a step outside what its ranks can be, naming the nearest.
    """
    ranked = _ranked(name)
    classes, ranks = len(check_class_names(class_names)), ranked.possible(start)

    def trainable(rank: int) -> int:
        return ranked.trainable(start, classes, rank)

    last, at = len(ranks) - 1, bisect_left(ranks, budget, key=trainable)  # the first that reaches the budget
    below, above = ranks[max(at - 1, 0)], ranks[min(at, last)]
    if below == above:  # at one of the ends
        _check_reach(name, [trainable(ranks[i]) for i in (0, min(1, last), max(last - 1, 0), last)], budget)
    return below if budget - trainable(below) <= trainable(above) - budget else above


def trainable_at(name: str, class_names: Sequence[str], start: Start, rank: int) -> int:
    """How many numbers strategy `name` trains at a rank, without building it. Raises ValueError as above."""
    return _ranked(name).trainable(start, len(check_class_names(class_names)), rank)


def _ranked(name: str) -> Ranked:
    strategy = find_strategy(name)
    if strategy.ranked is None:
        raise ValueError(f"{name} has no rank, so no budget can be met: what it trains is fixed")
    return strategy.ranked


def _check_reach(name: str, numbers: Sequence[int], budget: int) -> None:
    """`numbers`: those of the two lowest and the two highest ranks."""
    lowest, second, before, highest = numbers
    if 2 * (lowest - budget) > second - lowest or 2 * (budget - highest) > highest - before:
        raise ValueError(f"{name} cannot train about {budget} numbers here: its ranks train {lowest} to {highest}")
