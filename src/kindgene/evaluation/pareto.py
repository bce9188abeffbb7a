"""Quality against cost for the whole range of a pool's models: one plan a budget, from everything to the smallest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from kindgene.data.dataset import Dataset
from kindgene.diffusion.path import DiffusionPath
from kindgene.evaluation.denoising import calibration_batches, validation_loss
from kindgene.evaluation.plots import png
from kindgene.files import StrPath, write_bytes
from kindgene.pool.budget import ImpossibleBudgetError
from kindgene.pool.calibrate import Batch
from kindgene.pool.plan import Plan
from kindgene.pool.pool import Pool
from kindgene.progress import NoProgress, Progress


@dataclass(frozen=True)
class Point:
    """A plan, and the validation loss of the model it makes (None: no data to measure on)."""

    plan: Plan
    validation_loss: float | None

    def to_json(self) -> dict[str, Any]:
        return {"validation_loss": self.validation_loss, "plan": self.plan.to_json()}


def measure_pareto(
    pool: Pool,
    classes: Sequence[str],
    *,
    form: Literal["auto", "gated", "merged"] = "auto",
    data: Dataset | None = None,
    held_out: Dataset | None = None,
    points: int = 12,
    progress: Progress | None = None,
) -> list[Point]:
    """Plans for `points` budgets of parameters, evenly spaced from the whole model to the smallest there is.

    With `data` (its classes are `classes`, in that order) components are worth what they do to the model's output on
    it; each model's validation loss is measured on `held_out`, or on `data` if there is none. Raises ValueError for
    fewer than two points.
    """
    if type(points) is not int or points < 2:
        raise ValueError(f"points must be a whole number of at least 2, got {points!r}")
    calibration: list[Batch] | None = None
    if data is not None:
        path = DiffusionPath.of(pool.config.backbone_config)
        calibration = list(calibration_batches(data, path))
    whole = pool.plan(classes, form=form, calibration=calibration)
    least = _smallest(pool, classes, form)
    found: list[Point] = []
    shown = NoProgress() if progress is None else progress
    shown.start(points)
    for number in range(points):
        limit = round(whole.cost.parameters - number * (whole.cost.parameters - least) / (points - 1))
        plan = pool.plan(classes, form=form, max_parameters=limit, calibration=calibration) if number else whole
        measured = None
        if data is not None:
            measured = validation_loss(pool.recombine(plan=plan), data if held_out is None else held_out)
        found.append(Point(plan, measured))
        shown.update(number + 1, measured)
    shown.close()
    return found


def pareto_figure(points: Sequence[Point]) -> Figure:
    """Measured loss, where there is one, else the expected one, against parameters and against multiply-adds."""
    measured = points[0].validation_loss is not None
    values = [point.plan.loss if point.validation_loss is None else point.validation_loss for point in points]
    axes_of = [("parameters", [point.plan.cost.parameters for point in points])]
    if all(point.plan.cost.macs is not None for point in points):
        axes_of.append(("multiply-adds of a forward", [point.plan.cost.macs or 0 for point in points]))
    figure = Figure(figsize=(4.6 * len(axes_of), 3.6), layout="constrained")
    for place, (name, costs) in enumerate(axes_of):
        axes = figure.add_subplot(1, len(axes_of), place + 1)
        axes.plot(costs, values, marker="o", ms=4, color="#1f5fa8")
        if measured:
            axes.axhline(values[0], color="#8a8a8a", lw=0.8, ls="--", label="all components")
            axes.axhline(1.1 * values[0], color="#d9662b", lw=0.8, ls=":", label="10 % worse")
            axes.legend(frameon=False, fontsize=8)
        if measured:
            axes.set_ylim(0.9 * values[0], min(1.05 * max(values), 2.2 * values[0]))  # beyond, nothing is left
        axes.set_xlim(0, 1.04 * max(costs))
        axes.set_xlabel(name)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_formatter(_engineering)
    plan = points[0].plan
    figure.axes[0].set_ylabel("validation loss" if measured else f"expected loss ({plan.measure})")
    figure.suptitle(
        f"{plan.form} model of {', '.join(plan.classes[:6])}{' ...' if len(plan.classes) > 6 else ''}", fontsize=10
    )
    return figure


def draw_pareto(points: Sequence[Point], path: StrPath) -> None:
    """Writes the figure as PNG."""
    write_bytes(path, png(pareto_figure(points)))


def _smallest(pool: Pool, classes: Sequence[str], form: Literal["auto", "gated", "merged"]) -> int:
    try:
        return pool.plan(classes, form=form, max_parameters=1).cost.parameters
    except ImpossibleBudgetError as impossible:
        if impossible.smallest is None:
            raise
        return impossible.smallest


def _engineering(value: float, _: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
