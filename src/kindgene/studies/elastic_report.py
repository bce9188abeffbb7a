"""The elastic study's report, over seeds: one picture, one table, and what the figures say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kindgene.evaluation.plots import png
from kindgene.studies.elastic import CURVES
from kindgene.studies.page import Picture, Report, Table, write_report
from kindgene.studies.spread import TIE, against, spread, told

PLAIN, COMPARED = "plain-planned", ("elastic-planned", "svd-planned", "svd-prefixes", "small-dense")
HALF = 0.5
"""The share of the whole model's parameters at which ways are compared."""
STYLES = (
    ("#1f5fa8", "o", "-"),
    ("#2d8a57", "o", "-"),
    ("#1f5fa8", "s", ":"),
    ("#2d8a57", "s", ":"),
    ("#d9662b", "v", ":"),
    ("#d9662b", "^", "-"),
    ("#555555", "D", "--"),
)


def write_elastic(folder: Path, results: Sequence[Mapping[str, Any]]) -> Report:
    """Writes the report of `Elastic` results, one a seed, into `folder`."""
    summary = summarise(results)
    report = elastic_report(summary)
    write_report(folder, summary, results, report)
    return report


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every curve's points over seeds: mean parameters (they differ by a component at most), losses."""
    curves = {}
    for name in CURVES:
        points = zip(*(result["curves"][name] for result in results), strict=True)
        curves[name] = [_over_seeds(list(point)) for point in points]
    return {
        "study": "elastic",
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "curves": curves,
    }


def _over_seeds(points: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {
        "parameters": round(statistics.mean(point["parameters"] for point in points)),
        "loss": spread([point["loss"] for point in points]),
    }


def elastic_report(summary: Mapping[str, Any]) -> Report:
    """The report of a summary."""
    settings = summary["settings"]
    about = (
        f"{settings['base_classes']} glyph classes of {settings['per_class']} images ({settings['image_size']}x"
        f"{settings['image_size']} pixels), models for {settings['deployed_classes']} of them; width "
        f"{settings['width']}, {settings['depth']} blocks, N_G {settings['learngene_rank']}, N_T "
        f"{settings['tailor_rank']}; {settings['steps']:,} steps of {settings['batch_size']} images, one learning rate "
        "a kind of model. Loss: mean squared error of v at fixed noise, on test images of the deployed classes. "
        "Planned: components are dropped by what they were measured to be worth on training images. Small dense "
        "models are trained anew, for as long, on the deployed classes alone.",
    )
    picture = Picture(
        "elastic", "Loss against parameters; bars: least to most of the seeds.", png(elastic_figure(summary))
    )
    return Report("One pool, every budget", about, verdict(summary), [_table(summary)], [picture])


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What half of the parameters costs, in which way; and what elastic training costs the whole model."""
    curves, seeds = summary["curves"], len(summary["seeds"])
    whole = curves[PLAIN][0]
    half = HALF * whole["parameters"]
    plain = min(curves[PLAIN], key=lambda point: abs(point["parameters"] - half))
    sentences = [
        f"The plain pool at {plain['parameters']:,} of {_size(whole)}: {_than(plain, whole, seeds)} against whole."
    ]
    for name in COMPARED:
        other, between = at_size(curves[name], plain["parameters"])
        sentences.append(f"It against {CURVES[name]}, at {_size(other)}{between}: {_than(plain, other, seeds)}.")
    sentences.append(f"Elastic training, whole, against plain: {_than(curves[COMPARED[0]][0], whole, seeds)}.")
    return sentences


def at_size(points: Sequence[Mapping[str, Any]], parameters: int) -> tuple[Mapping[str, Any], str]:
    """A curve at so many parameters, and how that was had: a point within 1 %, or on the line between two.

    Beyond the ends of the curve it is the point there, at its own size.
    """
    nearest = min(points, key=lambda point: abs(point["parameters"] - parameters))
    larger = [point for point in points if point["parameters"] >= parameters]
    smaller = [point for point in points if point["parameters"] <= parameters]
    if abs(nearest["parameters"] / parameters - 1) < TIE or not larger or not smaller:
        return nearest, ""
    above = min(larger, key=lambda point: point["parameters"])
    below = max(smaller, key=lambda point: point["parameters"])
    share = (parameters - below["parameters"]) / (above["parameters"] - below["parameters"])
    loss = {key: below["loss"][key] + share * (above["loss"][key] - below["loss"][key]) for key in below["loss"]}
    between = f" (on the line between {below['parameters']:,} and {above['parameters']:,})"
    return {"parameters": parameters, "loss": loss}, between


def _than(one: Mapping[str, Any], other: Mapping[str, Any], seeds: int) -> str:
    return f"loss {against(one['loss'], other['loss'], seeds)}"


def _size(point: Mapping[str, Any]) -> str:
    return f"{point['parameters']:,} parameters"


def elastic_figure(summary: Mapping[str, Any]) -> Figure:
    """Loss against parameters, a line a way of making small models; bars from the least to the most of the seeds."""
    figure = Figure(figsize=(8.2, 4.8), layout="constrained")
    axes = figure.add_subplot()
    whole = summary["curves"][PLAIN][0]["loss"]["mean"]
    for (name, points), (colour, marker, line) in zip(summary["curves"].items(), STYLES, strict=True):
        losses = [point["loss"] for point in points]
        x, y = [point["parameters"] for point in points], [loss["mean"] for loss in losses]
        bars = [[loss["mean"] - loss["least"] for loss in losses], [loss["most"] - loss["mean"] for loss in losses]]
        axes.errorbar(x, y, bars, color=colour, marker=marker, ls=line, ms=4, lw=1.3, capsize=2, label=CURVES[name])
    axes.axhline(1.1 * whole, color="#999999", lw=0.8, ls=":")
    right = axes.get_yaxis_transform()  # where no curve comes near
    text = "10 % worse than the whole plain pool "
    axes.text(1.0, 1.1 * whole, text, transform=right, fontsize=7, ha="right", va="bottom", color="#777777")
    axes.set(xlabel="parameters", ylabel="test loss", ylim=(0.92 * whole, 2.2 * whole))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    return figure


def _table(summary: Mapping[str, Any]) -> Table:
    """Every point: parameters, loss, and how much worse than the whole plain pool."""
    whole = summary["curves"][PLAIN][0]["loss"]["mean"]
    rows = []
    for name, points in summary["curves"].items():
        for place, point in enumerate(points):
            change = f"{100 * (point['loss']['mean'] / whole - 1):+.1f} %"
            rows.append(["" if place else CURVES[name], f"{point['parameters']:,}", told(point["loss"]), change])
    return Table("", ["way", "parameters", "test loss", "against the whole plain pool"], rows)
