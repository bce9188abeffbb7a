"""The pretrain study's results, over seeds: a table, curves, what the figures say, one page."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kindgene.evaluation.plots import png
from kindgene.files import write_bytes, write_json
from kindgene.studies.figures import as_uri
from kindgene.studies.pretraining import MODELS

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>pretrain study</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse;margin:1rem 0;font-size:14px}}td,th{{border-bottom:1px solid #ddd;padding:.2rem .6rem;
text-align:right}}td:first-child,th:first-child{{text-align:left}}img{{max-width:100%}}</style>
<h1>Pre-training: decomposable against dense</h1>{body}</html>
"""
_COLOURS = ("#1f5fa8", "#444444", "#2d8a57", "#d9662b")


def write_pretrain(folder: Path, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes pretrain.json, .md, .png and .html into `folder`; returns what the JSON holds. `results`: one a seed."""
    summary = summarise(results)
    folder.mkdir(parents=True, exist_ok=True)
    figure = pretrain_figure(summary)
    write_bytes(folder / "pretrain.md", pretrain_table(summary).encode())
    write_bytes(folder / "pretrain.png", png(figure))
    write_bytes(folder / "pretrain.html", _page(summary, as_uri(figure)).encode())
    write_json(folder / "pretrain.json", {**summary, "runs": list(results)})
    return summary


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over seeds of test loss and recognised shares; costs are the same in all seeds."""
    models = {}
    for name in MODELS:
        runs = [result["models"][name] for result in results]
        curves = zip(*(run["validation"] for run in runs), strict=True)
        models[name] = {
            **{key: runs[0][key] for key in ("parameters", "macs", "one_class")},
            "rates": [run["rate"] for run in runs],
            "test": _spread([run["test"] for run in runs]),
            "recognised": {
                guidance: _spread([run["recognised"][guidance] for run in runs]) for guidance in runs[0]["recognised"]
            },
            "validation": [statistics.mean(point) for point in curves],
        }
    return {
        "study": "pretrain",
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "classifier_accuracy": statistics.mean(result["classifier_accuracy"] for result in results),
        "models": models,
    }


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the figures say; a sentence for each of the three it is compared with."""
    kind = summary["models"]["decomposable"]["test"]
    sentences = []
    for name, text in list(MODELS.items())[1:]:
        other = summary["models"][name]["test"]
        change = f"{100 * (kind['mean'] / other['mean'] - 1):+.1f} %"
        apart = kind["most"] < other["least"] or kind["least"] > other["most"]
        sure = "" if len(summary["seeds"]) == 1 else (", in every seed" if apart else ", within the spread of seeds")
        sentences.append(f"Test loss of KIND against {text}: {change} ({kind['mean']:.4f}, {other['mean']:.4f}){sure}.")
    return sentences


def pretrain_figure(summary: Mapping[str, Any]) -> Figure:
    """Validation loss against steps, a line a model."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    steps = [share * summary["settings"]["steps"] for share in summary["settings"]["milestones"]]
    for (name, found), colour in zip(summary["models"].items(), _COLOURS, strict=True):
        axes.plot(steps, found["validation"], color=colour, marker="o", ms=4, lw=1.5, label=name)
    axes.set(xlabel="steps", ylabel="validation loss", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25, which="both")
    return figure


def pretrain_table(summary: Mapping[str, Any]) -> str:
    """What the figures say, and all of them, as Markdown."""
    head, rows = _table(summary)
    lines = [f"- {sentence}" for sentence in verdict(summary)]
    lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    shares = list(summary["models"]["decomposable"]["recognised"])
    head = ["model", "stored", "for one class", "multiply-adds", "rate", "test loss"]
    head += [f"recognised, guidance {guidance}" for guidance in shares]
    rows = []
    for name, found in summary["models"].items():
        rates = ", ".join(f"{rate:g}" for rate in sorted(set(found["rates"])))
        costs = [f"{found[key]:,}" for key in ("parameters", "one_class", "macs")]
        test = _shown(found["test"], "{:.4f}")
        rows.append([name, *costs, rates, test, *(_shown(found["recognised"][share], "{:.2f}") for share in shares)])
    return head, rows


def _page(summary: Mapping[str, Any], picture: str) -> str:
    """Everything on one self-contained page."""
    head, rows = _table(summary)
    seeds = ", ".join(map(str, summary["seeds"]))
    body = [
        f"<p>Glyphs, {summary['settings']['classes']} classes, {summary['settings']['steps']} steps, scale "
        f"{summary['scale']}, seeds {seeds}; each model at the best of {len(summary['settings']['rates'])} learning "
        "rates.</p><ul>",
        *(f"<li>{html.escape(sentence)}</li>" for sentence in verdict(summary)),
        f'</ul><img alt="validation loss against steps" src="{picture}">',
        "<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>",
        *("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows),
        "</table>",
    ]
    return _PAGE.format(body="\n".join(body))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "least": min(values), "most": max(values)}


def _shown(found: Mapping[str, float], form: str) -> str:
    mean, least, most = (form.format(found[key]) for key in ("mean", "least", "most"))
    return mean if least == most else f"{mean} ({least} to {most})"
