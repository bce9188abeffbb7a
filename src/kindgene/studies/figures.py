"""Figures of a report, drawn with matplotlib and returned as PNG data URIs. No global plotting state."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from kindgene.core.components import Components
from kindgene.evaluation.matrices import kind_of, pool_matrices, short_name
from kindgene.evaluation.plots import BLUE, GREEN, GREY, ORANGE, Curve, draw_spectra, png
from kindgene.pool.plan import Plan
from kindgene.pool.pool import Pool


def image_grid(
    images: Tensor,
    rows: int,
    columns: int,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> str:
    """A grid of images [rows * columns, C, H, W] in [-1, 1], row by row; C is 1 or 3."""
    cell = 0.62
    left = 0.25 + 0.085 * max(map(len, row_labels)) if row_labels else 0.05
    left, top = max(left, 0.9) if row_labels else left, (0.35 if column_labels else 0.05)
    figure = Figure(figsize=(left + columns * cell, top + rows * cell))
    width, height = figure.get_size_inches()
    pixels = ((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        box = (
            (left + column * cell) / width,
            1 - (top + (row + 1) * cell) / height,
            0.94 * cell / width,
            0.94 * cell / height,
        )
        axes = figure.add_axes(box)
        axes.imshow(pixels[index].squeeze(-1).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        if row == 0 and column_labels:
            axes.set_title(column_labels[column], fontsize=9, pad=3)
        if column == 0 and row_labels:
            axes.text(-0.15, 0.5, row_labels[row], transform=axes.transAxes, ha="right", va="center", fontsize=9)
    return as_uri(figure)


def loss_curves(panels: Mapping[str, Mapping[str, Sequence[float]]], window: int = 20) -> str:
    """Running means of training losses, a panel a group of runs."""
    figure = Figure(figsize=(4.6 * len(panels), 3.1), layout="constrained")
    for index, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for place, (name, losses) in enumerate(curves.items()):
            colour = (BLUE, ORANGE, GREEN)[place % 3]
            values = torch.tensor(list(losses), dtype=torch.float64)
            width = min(window, len(values))
            smooth = values.unfold(0, width, 1).mean(1)
            axes.plot(range(width, len(values) + 1), smooth.tolist(), label=name, color=colour, lw=1.6)
        axes.set(title=title, xlabel="step", ylabel=f"loss (mean of {window} steps)", yscale="log")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.25, which="both")
    return as_uri(figure)


def spectra(pool: Pool) -> str:
    """Singular values of every target part: learngene and tailors (mean over classes), a panel a kind of matrix."""
    kinds: dict[str, list[Curve]] = {}
    for matrix in pool_matrices(pool):
        assert isinstance(matrix.shared, Components), "a pool holds components alone"
        own = [] if matrix.tailors is None else matrix.tailors.s.mean(0).tolist()
        kind = kind_of(matrix.target, matrix.part, matrix.parts)
        kinds.setdefault(kind, []).append(Curve(matrix.shared.s.tolist(), own))
    figure = Figure(figsize=(2.35 * len(kinds), 2.7), layout="constrained")
    draw_spectra(figure, kinds, {})
    figure.axes[0].plot([], [], color=BLUE, label="learngene")
    figure.axes[0].plot([], [], color=ORANGE, marker=".", label="tailors (mean)")
    figure.axes[0].legend(frameon=False, fontsize=7)
    return as_uri(figure)


def kept_ranks(pool: Pool, plan: Plan) -> str:
    """Where a gated plan put its components: what is kept of every matrix, beside what the pool has."""
    names, kept, kept_tailor, whole = [], [], [], []
    tailor_ranks = pool.config.tailor_ranks_of(plan.classes[0])
    for target, ranks in pool.config.ranks.items():
        for part, rank in enumerate(ranks):
            own = plan.ranks[target][part]
            names.append(short_name(target, part, len(ranks)))
            kept.append(rank if own is None else own)
            kept_tailor.append(plan.tailor_ranks[target][part])
            whole.append(rank + tailor_ranks[target][part])
    figure = Figure(figsize=(max(6.0, 0.3 * len(names)), 2.8), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(names))
    axes.bar(places, whole, color="#e8e8e8", label="in the pool")
    axes.bar(places, kept, color=BLUE, label="learngene kept")
    axes.bar(places, kept_tailor, bottom=kept, color=ORANGE, label="tailor kept")
    axes.set_xticks(list(places), names, rotation=90, fontsize=7)
    axes.set_ylabel("components")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.2))
    return as_uri(figure)


def cost_and_quality(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a model, three panels: parameters, multiply-adds of one forward, recognised share."""
    panels = (("parameters", "parameters"), ("macs", "multiply-adds of a forward"), ("recognised", "recognised"))
    figure = Figure(figsize=(10.2, 0.5 + 0.33 * len(rows)), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True)
    places = range(len(rows))
    for axes, (key, title) in zip(all_axes, panels, strict=True):
        values = [row[key] for row in rows]
        colours = [_colour(row["title"]) for row in rows]
        if key == "recognised":
            axes.scatter(values, places, c=colours, s=34, zorder=3)
            axes.set_xlim(min(0.8, *values) - 0.03, 1.03)
        else:
            axes.barh(places, values, color=colours, height=0.62)
            axes.set_xlim(0, 1.22 * max(values))
        for place, value in zip(places, values, strict=True):
            text = f" {100 * value:.1f} %" if key == "recognised" else f" {_engineering(value)}"
            side = {"ha": "right", "x": value - 0.012} if key == "recognised" else {"ha": "left", "x": value}
            axes.text(y=place, s=text.strip() if key == "recognised" else text, va="center", fontsize=8, **side)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, axis="x")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value <= 1.5 else _engineering(value))
        axes.set_axisbelow(True)
    all_axes[0].set_yticks(list(places), [row["title"] for row in rows])
    all_axes[0].invert_yaxis()
    return as_uri(figure)


def _colour(title: str) -> str:
    """Dense models grey, transferred ones green, all others blue."""
    if "dense" in title or "full fine" in title:
        return GREY
    return GREEN if "transfer" in title else BLUE


def _engineering(value: float) -> str:
    """``1.2M``, ``430k``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def as_uri(figure: Figure) -> str:
    """The figure as a PNG data URI, to stand in a page."""
    return "data:image/png;base64," + base64.b64encode(png(figure)).decode()
