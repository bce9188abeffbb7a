"""What the demo found: a row and samples a model, loss curves, facts. Plain data for report.json and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation.pareto import Point
from kindgene.pool.plan import Plan
from kindgene.pool.pool import Pool
from kindgene.studies.settings import DemoSettings


@dataclass(frozen=True, eq=False)
class Measured:
    """One model: its row of the table, its samples [N, C, H, W] and the classes they were asked for [N]."""

    title: str
    row: dict[str, Any]
    images: Tensor
    asked: list[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class DemoResult:
    """Everything the report shows.

    `gate_images` [noises, 1 + base classes, C, H, W]: one noise a row; learngene alone, then each tailor. `models` has
    the keys ``base``, ``dense``, ``recombined:NAME`` and ``transfer:NAME``; `curves` the loss of every step of each
    training; `pareto` are models of the single class from the whole one to the smallest, `half` is the plan of the one
    in half the parameters.
    """

    settings: DemoSettings
    real: ArrayDataset
    pool: Pool
    half: Plan
    gate_images: Tensor
    pareto: list[Point]
    models: dict[str, Measured]
    curves: dict[str, Sequence[float]]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """report.json: the facts, then ``base``, ``dense``, ``recombined[...]``, ``transfer[...]``."""
        out: dict[str, Any] = {**self.facts, "recombined": {}, "transfer": {}}
        for key, measured in self.models.items():
            group, _, name = key.partition(":")
            if name:
                out[group][name] = measured.row
            else:
                out[group] = measured.row
        return out
