"""Pictures of what was measured of matrices, drawn with matplotlib and returned as PNG. No global plotting state.

A column is a kind of matrix (q, fc1, ...) in all pictures but that of the overlaps, and blocks run from light to dark,
or from left to right.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kindgene.evaluation.colours import BLUE as BLUE
from kindgene.evaluation.colours import GREEN as GREEN
from kindgene.evaluation.colours import GREY as GREY
from kindgene.evaluation.colours import ORANGE as ORANGE
from kindgene.evaluation.history import History
from kindgene.evaluation.history_plot import draw_history, panels
from kindgene.evaluation.layers import ORTHOGONAL, Layer, Number, Spectrum, Structure, TailorSpectrum, mean

DPI = 130
_COLUMNS, _WIDE, _HIGH = 7, 2.0, 2.1  # panels a row; inches of a panel
_PANEL = 2.6  # inches of a panel of the history
_LABELS = 32  # so many tailors are named along an axis
_NUMBERS = 12  # so many are few enough to write a number into each cell

Drawing = Callable[[Any, Structure], None]
"""Draws into a figure or a part of one."""


@dataclass(frozen=True)
class Curve:
    """Singular values of one matrix: the learngene's (or the whole matrix's), and the mean of its tailors' if any."""

    shared: Sequence[float]
    tailors: Sequence[float] = ()


def png(figure: Figure) -> bytes:
    """The figure as a PNG file. Class names in a script that the font lacks show as boxes, without a warning."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def pictures(structure: Structure, title: str, history: History | None = None) -> dict[str, bytes]:
    """Each picture by its name: ``spectra``; ``energy``, ``drift``, ``overlap``, ``history`` where there is any."""
    drawn = {}
    for name, drawing in _drawings(structure, history).items():
        figure = Figure(figsize=_size(structure, name, history), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=GREY, parse_math=False)
        drawing(figure.subfigures(1, 1), structure)
        drawn[name] = png(figure)
    return drawn


def page(structure: Structure, title: str, history: History | None = None) -> bytes:
    """All of them on one page."""
    drawings = _drawings(structure, history)
    sizes = [_size(structure, name, history) for name in drawings]
    heights = [height for _, height in sizes]
    figure = Figure(figsize=(max(width for width, _ in sizes), sum(heights) + 0.3), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    parts = figure.subfigures(len(drawings), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, drawing in zip(parts, drawings.values(), strict=True):
        drawing(part, structure)
    return png(figure)


def draw_spectra(figure: Any, kinds: Mapping[str, Sequence[Curve]], notes: Mapping[str, Sequence[str]]) -> None:
    """A panel a kind of matrix, a curve a matrix; `notes` are written into the panels, in blue, then in orange."""
    axes_of = _panels(figure, list(kinds))
    blues, oranges = colormaps["Blues"], colormaps["Oranges"]
    for kind, curves in kinds.items():
        axes = axes_of[kind]
        for place, curve in enumerate(curves):
            shade = 0.45 + 0.5 * place / max(1, len(curves) - 1)
            axes.plot(range(1, len(curve.shared) + 1), curve.shared, color=blues(shade), lw=1.2)
            if curve.tailors:
                places = range(1, len(curve.tailors) + 1)
                axes.plot(places, curve.tailors, color=oranges(shade), lw=1.2, marker=".", ms=3)
        for line, note in enumerate(notes.get(kind, ())):  # of the learngene, and of tailors where there are any
            corner = {"ha": "right", "va": "top", "transform": axes.transAxes}
            axes.text(0.97, 0.96 - 0.09 * line, note, fontsize=7, color=(BLUE, ORANGE)[line], **corner)
        _from_zero(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("component", fontsize=8)
    next(iter(axes_of.values())).set_ylabel("singular value", fontsize=8)


def _drawings(structure: Structure, history: History | None) -> dict[str, Drawing]:
    there: dict[str, Drawing] = {"spectra": _spectra}
    if structure.tailors:
        there["energy"] = _energy
    if structure.largest_drift > ORTHOGONAL:
        there["drift"] = _drift
    if len(structure.tailors) > 1 and structure.random_u is not None:
        there["overlap"] = _overlap
    if history is not None and panels(history):
        there["history"] = lambda figure, _: draw_history(figure, history)
    return there


def _size(structure: Structure, name: str, history: History | None) -> tuple[float, float]:
    """Width and height in inches."""
    if name == "history" and history is not None:
        return _PANEL * max(2, len(panels(history))) + 0.3, _PANEL + 0.6
    kinds = len({layer.kind for layer in structure.layers})
    width = _WIDE * max(3, min(kinds, _COLUMNS)) + 0.3
    if name == "overlap":
        return max(width, 11.0), 3.9
    return width, _HIGH * math.ceil(kinds / _COLUMNS) + 0.75


def _spectra(figure: Any, structure: Structure) -> None:
    kinds, notes = {}, {}
    for kind, layers in _by_kind(structure).items():
        kinds[kind] = [Curve(layer.shared.singular_values, _mean_spectrum(layer.tailors)) for layer in layers]
        own = [tailor for layer in layers for tailor in layer.tailors]
        spectra: list[Sequence[Spectrum]] = [[layer.shared for layer in layers], own]
        notes[kind] = [
            f"{mean([one.effective_rank for one in some]):.1f} of {max(one.rank for one in some)}"
            for some in spectra
            if some
        ]
    draw_spectra(figure, kinds, notes)
    who = "blue the learngene's, orange the tailors' (mean)" if structure.tailors else "of the whole matrices"
    _caption(
        figure, f"Singular values: {who}. Light: first block, dark: last. Numbers: effective rank, mean, of the rank"
    )


def _mean_spectrum(tailors: Sequence[TailorSpectrum]) -> list[float]:
    """Mean singular values; a tailor of lower rank counts as zero beyond it."""
    most = max((tailor.rank for tailor in tailors), default=0)
    padded = [[*tailor.singular_values, *[0.0] * (most - tailor.rank)] for tailor in tailors]
    return [sum(column) / len(padded) for column in zip(*padded, strict=True)]


def _energy(figure: Any, structure: Structure) -> None:
    """Over the blocks: the tailors' mean share, in a band from least to most."""
    kinds = _by_kind(structure)
    axes = _panels(figure, list(kinds), share=True)
    for kind, layers in kinds.items():
        shares = [[t.energy_share for t in layer.tailors if t.energy_share is not None] for layer in layers]
        low, high = ([_percent(extreme(some, default=None)) for some in shares] for extreme in (min, max))
        places = range(len(layers))
        axes[kind].fill_between(places, low, high, color=ORANGE, alpha=0.2, lw=0)
        axes[kind].plot(places, [_percent(mean(some)) for some in shares], color=ORANGE, marker=".")
        _blocks(axes[kind], layers)
    _from_zero(*axes.values())
    next(iter(axes.values())).set_ylabel("share of energy, %", fontsize=8)
    told = "|T|² / (|L|² + |T|²) of tailor T and learngene L. Line: mean of the tailors; band: least to most"
    _caption(figure, f"Energy: the tailor's share of a class's matrix, {told}")


def _drift(figure: Any, structure: Structure) -> None:
    """Over the blocks: root mean square cosines of components, and what random ones have."""
    kinds = _by_kind(structure)
    axes = _panels(figure, list(kinds))
    for kind, layers in kinds.items():
        places = range(len(layers))
        for side, style, size in (("drift_u", "-", "outputs"), ("drift_v", "--", "inputs")):
            shared = [_number(getattr(layer.shared, side)) for layer in layers]
            axes[kind].plot(places, shared, color=BLUE, ls=style, marker=".")
            if structure.tailors:
                own = [_number(mean([getattr(tailor, side) for tailor in layer.tailors])) for layer in layers]
                axes[kind].plot(places, own, color=ORANGE, ls=style, marker=".")
            random = [1 / math.sqrt(getattr(layer, size)) for layer in layers]
            axes[kind].plot(places, random, color=GREY, ls=style, lw=0.8)
        _from_zero(axes[kind])
        _blocks(axes[kind], layers)
    next(iter(axes.values())).set_ylabel("RMS cosine of two", fontsize=8)
    who = "Blue: learngene, orange: tailors (mean)" if structure.tailors else "Blue: the thin pairs"
    _caption(
        figure,
        f"Drift: mean cosine of two components (root mean square; 0: orthogonal). {who}, grey: random directions; "
        "solid: U, dashed: V",
    )


def _overlap(figure: Any, structure: Structure) -> None:
    """Two maps, tailor by tailor, and each tailor beside the learngene; averages over all matrices."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    names = [_shortened(", ".join(tailor.classes)) for tailor in structure.tailors]
    for axes, rows, random, side in (
        (left, structure.overlap_u, structure.random_u, "U: what they write"),
        (middle, structure.overlap_v, structure.random_v, "V: what they read"),
    ):
        _map(figure, axes, rows, _number(random), names)
        axes.set_title(f"two tailors, {side}", fontsize=9)
    _beside_learngene(right, structure, names)
    _caption(
        figure,
        "Overlap: mean squared cosine of the principal angles, mean of all matrices. 0: orthogonal, 1: one lies in the "
        "other. White cells, dashed lines: as much as random spaces",
    )


def _map(figure: Any, axes: Any, rows: Sequence[Sequence[Number]], random: float, names: Sequence[str]) -> None:
    count = len(rows)
    values = [[math.nan if i == j else _number(value) for j, value in enumerate(row)] for i, row in enumerate(rows)]
    there = [value for row in values for value in row if not math.isnan(value)]
    colours = colormaps["PuOr_r"].with_extremes(bad="#d8d8d8")
    scale = TwoSlopeNorm(random, 0.0, max([2 * random, *there]))
    image = axes.imshow(values, cmap=colours, norm=scale, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.set_ticks([0.0, random, scale.vmax], labels=["0", f"{random:.3f}\nrandom", f"{scale.vmax:.3f}"])
    bar.ax.tick_params(labelsize=7)
    if count <= _NUMBERS:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    colour = "white" if abs(scale(value) - 0.5) > 0.35 else "black"
                    axes.text(j, i, f"{value:.3f}".lstrip("0"), ha="center", va="center", fontsize=7, color=colour)
    if count <= _LABELS:
        axes.set_xticks(
            range(count), names, fontsize=7, parse_math=False, rotation=90 if max(map(len, names)) > 2 else 0
        )
        axes.set_yticks(range(count), names, fontsize=7, parse_math=False)
    axes.set_xlabel("tailor of class" if count <= _LABELS else "tailor", fontsize=8)


def _beside_learngene(axes: Any, structure: Structure, names: Sequence[str]) -> None:
    """How much of each tailor's spaces lies in the learngene's."""
    layers, places = structure.layers, range(len(names))
    for shift, side, colour in ((-0.2, "u", BLUE), (0.2, "v", GREEN)):
        values = [
            _number(mean([getattr(layer.tailors[index], f"learngene_overlap_{side}") for layer in layers]))
            for index in places
        ]
        axes.bar([place + shift for place in places], values, width=0.4, color=colour, label=side.upper())
        random = mean([getattr(layer, f"random_learngene_{side}") for layer in layers])
        axes.axhline(_number(random), color=colour, ls="--", lw=1)
    axes.set_title("a tailor and the learngene", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.legend(frameon=False, fontsize=7, ncols=2)
    axes.margins(y=0.15)
    axes.set_ylabel("overlap", fontsize=8)
    axes.set_xlabel("tailor of class" if len(names) <= _LABELS else "tailor", fontsize=8)
    if len(names) <= _LABELS:
        axes.set_xticks(places, names, parse_math=False, rotation=90 if max(map(len, names)) > 2 else 0)


def _panels(figure: Any, names: Sequence[str], share: bool = False) -> dict[str, Any]:
    """Axes by name, `_COLUMNS` a row."""
    columns = min(len(names), _COLUMNS)
    grid = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False, sharey=share).flatten()
    for axes in grid[len(names) :]:
        axes.remove()
    axes_of = dict(zip(names, grid[: len(names)], strict=True))
    for name, axes in axes_of.items():
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    return axes_of


def _blocks(axes: Any, layers: Sequence[Layer]) -> None:
    """Blocks along the x axis, whole numbers alone."""
    axes.set_xlabel("block", fontsize=8)
    axes.set_xlim(-0.4, len(layers) - 0.6)
    step = math.ceil(len(layers) / 6)
    axes.set_xticks(range(0, len(layers), step))


def _from_zero(*several: Any) -> None:
    """One scale for these axes: from zero to a little more than what they show."""
    tops = [axes.dataLim.y1 for axes in several]
    top = max((top for top in tops if math.isfinite(top)), default=0.0) or 1.0
    for axes in several:
        axes.set_ylim(0.0, 1.07 * top)


def _caption(figure: Any, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=8.5, parse_math=False)


def _by_kind(structure: Structure) -> dict[str, list[Layer]]:
    kinds: dict[str, list[Layer]] = {}
    for layer in structure.layers:
        kinds.setdefault(layer.kind, []).append(layer)
    return kinds


def _shortened(name: str) -> str:
    """Cut in the middle: names often differ at their ends alone."""
    return name if len(name) <= 14 else f"{name[:7]}…{name[-6:]}"


def _percent(value: Number) -> float:
    return 100 * _number(value)


def _number(value: Number) -> float:
    """NaN, which is not drawn, for what is not defined."""
    return math.nan if value is None else value
