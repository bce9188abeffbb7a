"""The history of a run as a picture: a panel each for loss, gradients, singular values, energy and orthogonality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import FuncFormatter, MaxNLocator

from kindgene.evaluation.colours import BLUE, GREY, ORANGE
from kindgene.evaluation.history import History, Moment, Number

Values = Callable[[Moment], Number]


class _Line(NamedTuple):
    value: Values
    label: str
    colour: str
    style: str = "-"


_PANELS: dict[str, tuple[_Line, ...]] = {
    "loss": (_Line(lambda moment: moment.loss, "", BLUE),),
    "gradient norm": (
        _Line(lambda moment: moment.grad_norm, "all", GREY),
        _Line(lambda moment: moment.learngene_gradient, "learngene", BLUE),
        _Line(lambda moment: moment.tailor_gradient, "tailors", ORANGE),
    ),
    "singular values": (
        _Line(lambda moment: moment.singular_largest, "largest", BLUE),
        _Line(lambda moment: moment.singular_median, "median", BLUE, "--"),
        _Line(lambda moment: moment.singular_smallest, "smallest", BLUE, ":"),
    ),
    "share of energy, %": (
        _Line(lambda moment: _percent(moment.learngene_energy), "learngene", BLUE),
        _Line(lambda moment: _percent(moment.tailor_energy), "tailors", ORANGE),
    ),
    "orthogonality": (
        _Line(lambda moment: moment.orthogonality_u, "U", BLUE),
        _Line(lambda moment: moment.orthogonality_v, "V", BLUE, "--"),
    ),
}
_LOGARITHMIC = ("loss", "gradient norm")
_LOG_FROM = 10.0  # the ratio of largest to smallest from which these panels' scale is logarithmic


def panels(history: History) -> list[str]:
    """Those that have something to show."""
    return [name for name, lines in _PANELS.items() if any(_points(history, line) for line in lines)]


def draw_history(figure: Any, history: History) -> None:
    """Over the steps, means over all matrices; a scale is logarithmic where the values ask for it."""
    names = panels(history)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_steps))
        drawn = [(line, points) for line in _PANELS[name] if (points := _points(history, line))]
        for line, points in drawn:
            few = {"marker": "."} if len(points) < 30 else {}
            axes.plot(*zip(*points, strict=True), color=line.colour, ls=line.style, lw=1.2, label=line.label, **few)
        _scale(axes, name, [value for _, points in drawn for _, value in points])
        if len(drawn) > 1:
            axes.legend(frameon=False, fontsize=7)
    caption = "Training: the log's loss (mean since the line before) and gradients before clipping"
    if "singular values" in names:
        caption += "; of the raw weights, means over the learngene's matrices, and energy of learngene and mean tailor"
    figure.suptitle(caption, x=0.01, ha="left", fontsize=8.5, parse_math=False)


def _points(history: History, line: _Line) -> list[tuple[int, float]]:
    found = ((moment.step, line.value(moment)) for moment in history.moments)
    return [(step, value) for step, value in found if value is not None and math.isfinite(value)]


def _scale(axes: Any, name: str, values: Sequence[float]) -> None:
    if name in _LOGARITHMIC and min(values) > 0 and max(values) > _LOG_FROM * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0.0, 1.07 * max(values) or 1.0)


def _steps(step: float, place: object) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"


def _percent(share: Number) -> Number:
    return None if share is None else 100 * share
