"""A figure over seeds: mean, least and most; and how such figures are written and compared."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Spread = Mapping[str, float]

TIE = 0.01
"""Figures nearer than this share of each other are called even (ours)."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """``mean``, ``least``, ``most``."""
    return {"mean": statistics.mean(values), "least": min(values), "most": max(values)}


def spreads(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The spread of each figure of mappings with the same keys."""
    return {key: spread([one[key] for one in found]) for key in found[0]}


def told(figure: Spread, form: str = ".4f") -> str:
    """``0.0512 (0.0508 to 0.0520)``; the mean alone where all seeds agree, or there is one."""
    mean = format(figure["mean"], form)
    least, most = format(figure["least"], form), format(figure["most"], form)
    return mean if least == most else f"{mean} ({least} to {most})"


def apart(one: Spread, other: Spread) -> bool:
    """Whether every seed of the one is below every seed of the other, or above."""
    return one["most"] < other["least"] or one["least"] > other["most"]


def against(one: Spread, other: Spread, seeds: int) -> str:
    """The change of the mean, and how sure it is: ``-4.2 %, in every seed``."""
    change = one["mean"] / other["mean"] - 1 if other["mean"] else float("inf")
    if abs(change) < TIE:
        return f"even ({100 * change:+.1f} %)"
    if seeds == 1:
        return f"{100 * change:+.1f} % (one seed)"
    return f"{100 * change:+.1f} %, {'in every seed' if apart(one, other) else 'within the spread of seeds'}"


def at_edge(rate: float, grid: Mapping[str, Any]) -> bool:
    """Whether the best rate is the least or the greatest of its grid: a wider one might do better."""
    rates = sorted(float(one) for one in grid)
    return len(rates) > 1 and rate in (rates[0], rates[-1])
