"""The planner: which components to keep so that a model fits its budget and loses least.

Every part offers a list of choices from the dearest, which loses nothing, to the cheapest. The planner (ours) is
greedy: as long as a limit is broken it takes the step with the least loss, per unit of what is broken where losses can
be added up over matrices (measured on data), as such where they cannot (shares of each matrix's own energy: then all
matrices end with about the same relative error). What a last, large step freed too much is given back where it gains
most.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kindgene.pool.cost import Rank

RESOURCES = ("parameters", "macs", "bytes")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """Limits of a model; None: no limit. `max_macs` counts multiply-adds of one forward of one sample.

    Raises ValueError for a limit that is not a number above 0.
    """

    max_parameters: int | None = None
    max_macs: int | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            whole = type(limit) is int or (name == "max_latency_ms" and type(limit) is float)
            if not whole or not 0 < limit < math.inf:
                kind = "number" if name == "max_latency_ms" else "whole number"
                raise ValueError(f"{name} must be a {kind} above 0, got {limit!r}")

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        every = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: limit for name, limit in every.items() if limit is not None}


@dataclass(frozen=True, eq=False)
class Item:
    """Something whose rank is chosen. `costs` [choices, resources] fall, `losses` [choices] rise, the first is 0."""

    key: tuple[str, int]
    ranks: tuple[Rank, ...]
    costs: Floats
    losses: Floats


class ImpossibleBudgetError(ValueError):
    """A limit below the smallest model there is; the message names that one, and `smallest` says how much it takes."""

    def __init__(self, message: str, smallest: int | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


def choose(
    items: Sequence[Item], fixed: Sequence[float], limits: Mapping[str, float], *, additive: bool
) -> dict[tuple[str, int], Rank]:
    """The rank of every item such that `fixed` + their costs stay within the limits (by name of RESOURCES).

    `additive`: losses are in one unit for all items. Raises ImpossibleBudgetError if even the cheapest do not fit.
    """
    search = _Search(items, np.array(fixed, dtype=np.float64), limits, additive)
    search.shrink()
    search.give_back()
    return {item.key: item.ranks[position] for item, position in zip(items, search.at, strict=True)}


class _Search:
    """Where every item stands, and what all of them cost."""

    def __init__(self, items: Sequence[Item], fixed: Floats, limits: Mapping[str, float], additive: bool) -> None:
        self.items, self.additive = items, additive
        self.limits = np.array([limits.get(name, np.inf) for name in RESOURCES])
        self.at = [0] * len(items)
        self.total = fixed + sum((item.costs[0] for item in items), np.zeros(len(RESOURCES)))
        smallest = fixed + sum((item.costs[-1] for item in items), np.zeros(len(RESOURCES)))
        for name, limit, least in zip(RESOURCES, self.limits, smallest, strict=True):
            if least > limit:
                what = "multiply-adds" if name == "macs" else name
                raise ImpossibleBudgetError(
                    f"a budget of {limit:,.0f} {what} is impossible for these classes: the smallest model has "
                    f"{least:,.0f} {what} (every matrix at rank 1)",
                    int(least),
                )

    def shrink(self) -> None:
        """Takes steps until no limit is broken; the queue is made anew when other limits are."""
        while (broken := self.total > self.limits).any():
            queue = [step for index in range(len(self.items)) if (step := self._step(index, broken))]
            heapq.heapify(queue)
            while queue and ((self.total > self.limits) == broken).all():
                _, index, to = heapq.heappop(queue)
                self._move(index, to)
                if step := self._step(index, broken):
                    heapq.heappush(queue, step)

    def give_back(self) -> None:
        """Undoes steps that fit after all, the one that gains most first."""
        while True:
            gains = []
            for index, item in enumerate(self.items):
                here = self.at[index]
                if here and (self.total + item.costs[here - 1] - item.costs[here] <= self.limits).all():
                    gains.append((item.losses[here] - item.losses[here - 1], -index))
            if not gains:
                return
            _, index = max(gains)
            self._move(-index, self.at[-index] - 1)

    def _step(self, index: int, broken: npt.NDArray[np.bool_]) -> tuple[float, int, int] | None:
        """(price, item, choice to go to) of the item's best step; None where it frees nothing of what is broken."""
        item, here = self.items[index], self.at[index]
        freed = ((item.costs[here] - item.costs[here + 1 :])[:, broken] / self.limits[broken]).sum(1)
        useful = np.flatnonzero(freed > 0)
        if not len(useful):
            return None
        lost = item.losses[here + 1 :] - item.losses[here]
        if not self.additive:
            return float(lost[useful[0]]), index, here + 1 + int(useful[0])
        prices = lost[useful] / freed[useful]
        best = int(useful[int(np.argmin(prices))])
        return float(prices.min()), index, here + 1 + best

    def _move(self, index: int, to: int) -> None:
        costs = self.items[index].costs
        self.total = self.total - costs[self.at[index]] + costs[to]
        self.at[index] = to
