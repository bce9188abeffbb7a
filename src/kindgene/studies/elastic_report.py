"""The elastic study's results, over seeds: one picture, one table, plain data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kindgene.evaluation.plots import png
from kindgene.files import write_bytes, write_json

STYLES = (
    ("#1f5fa8", "o", "-"),
    ("#2d8a57", "o", "-"),
    ("#1f5fa8", "s", ":"),
    ("#2d8a57", "s", ":"),
    ("#d9662b", "v", ":"),
    ("#d9662b", "^", "-"),
    ("#555555", "D", "--"),
)


def write_elastic(folder: Path, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes elastic.json, elastic.png and elastic.md into `folder`; returns what the JSON holds.

    `results` are those of `run_elastic`, one a seed, of one scale.
    """
    summary = summarise(results)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "elastic.png", png(elastic_figure(summary)))
    write_bytes(folder / "elastic.md", elastic_table(summary).encode())
    write_json(folder / "elastic.json", {**summary, "runs": list(results)})
    return summary


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds of every curve's points (parameters differ by a component at most)."""
    curves = {}
    for name in results[0]["curves"]:
        points = zip(*(result["curves"][name] for result in results), strict=True)
        curves[name] = [_point(list(point)) for point in points]
    return {
        "study": "elastic",
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "measure": results[0]["measure"],
        "curves": curves,
    }


def elastic_figure(summary: Mapping[str, Any]) -> Figure:
    """Loss against parameters, a line a way of making small models; bars from the least to the most of the seeds."""
    figure = Figure(figsize=(8.2, 4.8), layout="constrained")
    axes = figure.add_subplot()
    whole = summary["curves"]["plain pool, planned"][0]["loss"]
    for (name, points), (colour, marker, line) in zip(summary["curves"].items(), STYLES, strict=True):
        x, y = [point["parameters"] for point in points], [point["loss"] for point in points]
        bars = [[p["loss"] - p["least"] for p in points], [p["most"] - p["loss"] for p in points]]
        axes.errorbar(x, y, bars, color=colour, marker=marker, ls=line, ms=4, lw=1.3, capsize=2, label=name)
    axes.axhline(1.1 * whole, color="#999999", lw=0.8, ls=":")
    axes.text(0.01, 1.1 * whole, " 10 % worse than the whole plain pool", fontsize=7, va="bottom", color="#777777")
    axes.set(xlabel="parameters", ylabel="validation loss", ylim=(0.92 * whole, 2.2 * whole))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    return figure


def elastic_table(summary: Mapping[str, Any]) -> str:
    """Every point as a Markdown table: parameters, loss, and how much worse than the whole plain pool."""
    whole = summary["curves"]["plain pool, planned"][0]["loss"]
    lines = ["| way | parameters | validation loss | against the whole plain pool |", "|---|---|---|---|"]
    for name, points in summary["curves"].items():
        for place, point in enumerate(points):
            spread = f" ({point['least']:.4f} to {point['most']:.4f})" if len(summary["seeds"]) > 1 else ""
            change = f"{100 * (point['loss'] / whole - 1):+.1f} %"
            lines.append(
                f"| {name if not place else ''} | {point['parameters']:,.0f} | {point['loss']:.4f}{spread} | {change} |"
            )
    return "\n".join(lines) + "\n"


def _point(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    losses = [point["loss"] for point in points]
    return {
        "parameters": round(statistics.mean(point["parameters"] for point in points)),
        "loss": statistics.mean(losses),
        "least": min(losses),
        "most": max(losses),
    }
