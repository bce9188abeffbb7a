"""The history of a run as its log tells it (training/trainer.py): loss, and diagnostics where it took any."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Number = float | None
MOMENTS = 1000
"""Of the lines of a log, and of those with diagnostics, at most so many are kept, evenly spaced (ours)."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One line of the log; None for what it does not tell.

    `loss` is the mean since the line before; `grad_norm` that of all gradients, before clipping; the others are those
    of `training/diagnostics.py`, over all matrices.
    """

    step: int
    loss: Number
    grad_norm: Number
    learngene_gradient: Number
    tailor_gradient: Number
    singular_largest: Number
    singular_median: Number
    singular_smallest: Number
    learngene_energy: Number
    tailor_energy: Number
    orthogonality_u: Number
    orthogonality_v: Number

    @property
    def diagnosed(self) -> bool:
        """Whether diagnostics were taken here."""
        return self.singular_largest is not None or self.learngene_gradient is not None


@dataclass(frozen=True, kw_only=True)
class History:
    """`moments` by step, `MOMENTS` at most of each kind; `lines` is how many there are in the log."""

    lines: int
    moments: list[Moment]


def read_history(log: Path) -> History | None:
    """What a log.jsonl tells; None where there is none or nothing in it yet.

    A last line that is cut short, as in a run under way, is left out. Raises ValueError naming any other line that is
    not what training writes.
    """
    if not log.exists():
        return None
    lines = log.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    moments = [_moment(line, f"{log}: line {number}") for number, line in enumerate(lines, start=1)]
    if not moments:
        return None
    diagnosed = spaced([moment for moment in moments if moment.diagnosed], MOMENTS)
    kept = {moment.step: moment for moment in (*spaced(moments, MOMENTS), *diagnosed)}
    return History(lines=len(moments), moments=[kept[step] for step in sorted(kept)])


def spaced(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most `most` (2 or more) of these, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _moment(line: bytes, where: str) -> Moment:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        raise ValueError(f"{where} does not say of which step it is")
    diagnostics = _mapping(values, "diagnostics")
    gradients, summary = _mapping(diagnostics, "gradient_norm"), _mapping(diagnostics, "summary")
    return Moment(
        step=values["step"],
        loss=_number(values, "loss"),
        grad_norm=_number(values, "grad_norm"),
        learngene_gradient=_number(gradients, "learngene"),
        tailor_gradient=_number(gradients, "tailors"),
        singular_largest=_number(summary, "singular_largest"),
        singular_median=_number(summary, "singular_median"),
        singular_smallest=_number(summary, "singular_smallest"),
        learngene_energy=_number(summary, "learngene_energy"),
        tailor_energy=_number(summary, "tailor_energy"),
        orthogonality_u=_number(summary, "orthogonality_u"),
        orthogonality_v=_number(summary, "orthogonality_v"),
    )


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _number(values: Mapping[str, Any], key: str) -> Number:
    found = values.get(key)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
