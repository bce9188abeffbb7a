"""What a recombined model costs, and how it is made to cost less: an exact cost model and a planner.

A part is one matrix of one target (q of a fused qkv, say), I in, O out. A component costs I + O + 1 numbers in the
gated form (u, v and s) and I + O in the merged form (s folded in); a merged part is a dense matrix where that is
cheaper. Pools are canonical, so ranks are prefixes and the energy of what is dropped is a sum of squared singular
values (Eckart-Young). The planner is ours: greedy, always the step that loses the least relative energy of its matrix,
so that all matrices end with about the same relative error. (Dividing by the numbers saved, or taking absolute
energies, starved some matrices: measured on digits, docs/method.md.)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One way to keep something: a rank, or None for the dense matrix; what it costs and the energy it loses."""

    rank: int | None
    parameters: int
    loss: float


@dataclass(frozen=True)
class Item:
    """Something whose rank is chosen: key names it; choices from the dearest (nothing lost) to the cheapest."""

    key: tuple[str, ...]
    choices: tuple[Choice, ...]


def factored_choices(squares: Sequence[float], cost: int, whole: float) -> tuple[Choice, ...]:
    """Ranks R..1 of a part kept as components at `cost` numbers each; losses are shares of the energy `whole`."""
    rank = len(squares)
    tails = _tails(squares, whole)
    return tuple(Choice(kept, kept * cost, tails[kept]) for kept in range(rank, 0, -1))


def merged_choices(squares: Sequence[float], inputs: int, outputs: int, whole: float) -> tuple[Choice, ...]:
    """Ranks of a merged part, from its full rank down; the dense matrix first where that is the cheaper whole."""
    tails = _tails(squares, whole)
    dense, pair = inputs * outputs, inputs + outputs
    full = len(squares)
    choices = [Choice(full, full * pair, 0.0) if full * pair < dense else Choice(None, dense, 0.0)]
    choices += [
        Choice(kept, kept * pair, tails[kept]) for kept in range(full - 1, 0, -1) if kept * pair < choices[0].parameters
    ]
    return tuple(choices)


def plan(items: Sequence[Item], fixed: int, max_parameters: int | None) -> dict[tuple[str, ...], int | None]:
    """The rank of every item such that fixed + their parameters fit. None: nothing is dropped.

    Raises ValueError naming the smallest possible number where the budget cannot be met.
    """
    at = [0] * len(items)
    total = fixed + sum(item.choices[0].parameters for item in items)
    if max_parameters is not None:
        smallest = fixed + sum(item.choices[-1].parameters for item in items)
        if max_parameters < smallest:
            raise ValueError(
                f"a budget of {max_parameters:,} parameters is impossible for these classes: the smallest model has "
                f"{smallest:,} (every matrix at rank 1; {fixed:,} are outside the targets)"
            )
        steps = [_step(items, at, index) for index in range(len(items))]
        queue = [step for step in steps if step is not None]
        heapq.heapify(queue)
        while total > max_parameters:
            _, index = heapq.heappop(queue)
            before = items[index].choices[at[index]]
            at[index] += 1
            total -= before.parameters - items[index].choices[at[index]].parameters
            step = _step(items, at, index)
            if step is not None:
                heapq.heappush(queue, step)
    return {item.key: item.choices[position].rank for item, position in zip(items, at, strict=True)}


def _step(items: Sequence[Item], at: Sequence[int], index: int) -> tuple[float, int] | None:
    """Share of its matrix's energy that item `index`'s next choice loses; None at its last."""
    choices = items[index].choices
    if at[index] + 1 >= len(choices):
        return None
    now, after = choices[at[index]], choices[at[index] + 1]
    return after.loss - now.loss, index


def _tails(squares: Sequence[float], whole: float) -> list[float]:
    """tails[k]: share of the energy lost when the first k components are kept."""
    tails = [0.0] * (len(squares) + 1)
    for kept in range(len(squares) - 1, -1, -1):
        tails[kept] = tails[kept + 1] + squares[kept]
    return [math.inf if math.isnan(tail) else tail / whole if whole else 0.0 for tail in tails]
