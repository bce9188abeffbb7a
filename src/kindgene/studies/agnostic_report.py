"""The agnostic study's results, over seeds: tables, pictures, a verdict that follows from the figures, one page."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kindgene.files import write_bytes, write_json
from kindgene.studies.agnostic import MODELS, PARTS
from kindgene.studies.figures import image_grid

FIGURES = ("own", "other", "entropy", "variance", "kurtosis")
CELLS = tuple(
    f"{components} components, {row if row != 'none' else 'null'} row" for components in PARTS for row in PARTS
)
SWAPPED, CROSSED, ALONE = "other components, own row", "own components, other row", "none components, null row"
MARGIN = 0.1
"""So much of all samples one part must be ahead by, in both swaps, to be said to carry the class (ours)."""

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>agnostic study</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse;margin:1rem 0;font-size:14px}}td,th{{border-bottom:1px solid #ddd;padding:.2rem .7rem;
text-align:right}}td:first-child,th:first-child{{text-align:left}}img{{max-width:100%}}</style>{body}</html>
"""


def write_agnostic(folder: Path, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes agnostic.json, agnostic.md and agnostic.html into `folder`; returns what the JSON holds.

    `results` are those of `run_agnostic`, one a seed, of one scale.
    """
    summary = summarise(results)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "agnostic.md", agnostic_table(summary).encode())
    runs = [{key: value for key, value in result.items() if key != "pictures"} for result in results]
    write_bytes(folder / "agnostic.html", _page(summary, results[0]["pictures"]).encode())
    write_json(folder / "agnostic.json", {**summary, "runs": runs})
    return summary


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over seeds of every figure of every cell."""
    cells = {
        model: {
            cell: {
                name: _spread([result["models"][model]["cells"][cell][name] for result in results]) for name in FIGURES
            }
            for cell in CELLS
        }
        for model in MODELS
    }
    return {
        "study": "agnostic",
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "classifier_accuracy": statistics.mean(result["classifier_accuracy"] for result in results),
        "real": {name: _spread([result["real"][name] for result in results]) for name in FIGURES},
        "models": cells,
    }


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the figures say of the claim that the learngene is class-agnostic; a sentence each."""
    primary, control = summary["models"]["label drop 0"], summary["models"]["label rows only"]
    chance = 1 / summary["settings"]["classes"]
    swapped, crossed, alone = (primary[cell] for cell in (SWAPPED, CROSSED, ALONE))
    towards_tailor = (
        swapped["other"]["mean"] - swapped["own"]["mean"],
        crossed["own"]["mean"] - crossed["other"]["mean"],
    )
    carrier = "neither part alone"
    if min(towards_tailor) > MARGIN:
        carrier = "the tailor"
    elif max(towards_tailor) < -MARGIN:
        carrier = "the label row"
    return [
        f"Whole classes are recognised in {_percent(primary[CELLS[0]]['own'])} of samples; chance is {chance:.1%}.",
        f"With another class's components and its own label row a sample is taken for the other class in "
        f"{_percent(swapped['other'])}, for its own in {_percent(swapped['own'])}; the other way round for its own in "
        f"{_percent(crossed['own'])}, for the other in {_percent(crossed['other'])}: {carrier} carries the class.",
        f"The learngene alone, never trained alone, draws its samples over the classes with an entropy of "
        f"{alone['entropy']['mean']:.2f} of uniform (real images: {summary['real']['entropy']['mean']:.2f}).",
        f"Without tailors (N_T = 0) label rows alone give {_percent(control[CELLS[0]]['own'])}.",
    ]


def agnostic_table(summary: Mapping[str, Any]) -> str:
    """The verdict and a table a model, as Markdown."""
    lines = [f"- {sentence}" for sentence in verdict(summary)]
    for model, text in MODELS.items():
        lines += ["", f"**{model}** ({text})", ""]
        lines += ["| components, label row | taken for own | for the other | entropy | variance | kurtosis |"]
        lines += ["|---|---|---|---|---|---|"]
        for cell in CELLS:
            found = summary["models"][model][cell]
            shown = [_percent(found["own"]), _percent(found["other"])]
            shown += [_number(found[name]) for name in FIGURES[2:]]
            lines.append(f"| {cell} | {' | '.join(shown)} |")
    real = summary["real"]
    shown = [_percent(real["own"]), _percent(real["other"]), *(_number(real[name]) for name in FIGURES[2:])]
    lines += ["", f"Real held-out images: {', '.join(f'{n} {v}' for n, v in zip(FIGURES, shown, strict=True))}."]
    return "\n".join(lines) + "\n"


def _page(summary: Mapping[str, Any], pictures: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """Everything on one self-contained page; the pictures are of the first seed."""
    seeds = ", ".join(map(str, summary["seeds"]))
    parts = [
        "<h1>Is the learngene class-agnostic?</h1>",
        f"<p>Glyphs, {summary['settings']['classes']} classes, {summary['settings']['steps']} steps, seeds {seeds}, "
        f"scale {summary['scale']}; an independent classifier, {summary['classifier_accuracy']:.1%} right on held-out "
        "images, says what was drawn. <i>Other</i> is the next class.</p><ul>",
        *(f"<li>{html.escape(sentence)}</li>" for sentence in verdict(summary)),
        "</ul>",
    ]
    for model, text in MODELS.items():
        images = torch.cat([pictures[model][cell] for cell in CELLS])
        grid = image_grid(images, len(CELLS), len(images) // len(CELLS), row_labels=[_short(cell) for cell in CELLS])
        rows = "".join(
            f"<tr><td>{html.escape(cell)}</td>"
            + "".join(f"<td>{_percent(found[name])}</td>" for name in FIGURES[:2])
            + "".join(f"<td>{_number(found[name])}</td>" for name in FIGURES[2:])
            + "</tr>"
            for cell, found in summary["models"][model].items()
        )
        head = "".join(f"<th>{name}</th>" for name in ("", "own", "other", *FIGURES[2:]))
        parts += [f"<h2>{html.escape(model)}</h2><p>{html.escape(text)}</p>", f"<table><tr>{head}</tr>{rows}</table>"]
        parts += [f'<img alt="samples of each cell, a class a column" src="{grid}">']
    return _PAGE.format(body="\n".join(parts))


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, least and most; None where a figure is not defined for some seed."""
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return {"mean": None, "least": None, "most": None}
    return {"mean": statistics.mean(defined), "least": min(defined), "most": max(defined)}


def _percent(found: Mapping[str, float | None]) -> str:
    """``93 % (91 to 95)``."""
    mean, least, most = found["mean"], found["least"], found["most"]
    assert mean is not None, "shares are always defined"
    assert least is not None, "likewise"
    assert most is not None, "likewise"
    spread = f" ({100 * least:.0f} to {100 * most:.0f})" if most > least else ""
    return f"{100 * mean:.0f} %{spread}"


def _number(found: Mapping[str, float | None]) -> str:
    return "-" if found["mean"] is None else f"{found['mean']:.2f}"


def _short(cell: str) -> str:
    """``own/null``."""
    components, row = cell.split(", ")
    return f"{components.split(' ')[0]}/{row.split(' ')[0]}"
