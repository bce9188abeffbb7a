"""Results of the novel and the shift study, over seeds: a table a task, pictures, what the figures say, one page."""

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
from kindgene.studies.transfers import EQUAL
from kindgene.transfer.strategies import STRATEGIES

KIND, CONTROL, FULL, SCRATCH = "kind", f"class_lora-{EQUAL}", "full_finetune", "scratch"
ADAPTERS = tuple(f"{name}-{EQUAL}" for name in ("lora", "dora", "pissa", "loha", "oft"))
TIE = 0.01
"""Losses nearer than this share of each other are called even (ours)."""

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse;margin:1rem 0;font-size:14px}}td,th{{border-bottom:1px solid #ddd;padding:.2rem .6rem;
text-align:right}}td:first-child,th:first-child{{text-align:left}}img{{max-width:100%}}</style>
<h1>{title}</h1>{body}</html>
"""
_HEAD = ("method", "rank", "trained", "travels", "multiply-adds", "rate", "test loss", "against KIND")


def write_transfers(folder: Path, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes NAME.json, NAME.md, NAME.png and NAME.html into `folder`; returns what the JSON holds.

    `results` are those of `run_transfers`, one a seed, of one study and scale.
    """
    summary = summarise(results)
    name = summary["study"]
    folder.mkdir(parents=True, exist_ok=True)
    figure = transfers_figure(summary)
    write_bytes(folder / f"{name}.md", transfers_table(summary).encode())
    write_bytes(folder / f"{name}.png", png(figure))
    write_bytes(folder / f"{name}.html", _page(summary, as_uri(figure)).encode())
    write_json(folder / f"{name}.json", {**summary, "runs": list(results)})
    return summary


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most of the test loss over seeds; costs are those of the first seed, which all share."""
    tasks: dict[str, Any] = {}
    for task, rows in results[0]["tasks"].items():
        tasks[task] = {}
        for row, first in rows.items():
            runs = [result["tasks"][task][row] for result in results]
            tests = [run.get("test") for run in runs]
            if "refused" in first or any(test is None for test in tests):
                tasks[task][row] = {"refused": first.get("refused", "it diverged at every rate")}
                continue
            curves = zip(*(run["validation"] for run in runs), strict=True)
            costs = {key: first[key] for key in ("rank", "trainable", "travels", "parameters", "macs")}
            tasks[task][row] = {
                **costs,
                "rates": [run["rate"] for run in runs],
                "test": statistics.mean(tests),
                "least": min(tests),
                "most": max(tests),
                "validation": [statistics.mean(point) for point in curves],
            }
    return {
        "study": results[0]["study"],
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "tasks": tasks,
    }


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the figures of each task say; a sentence or two a task."""
    sentences = []
    for task, rows in summary["tasks"].items():
        losses = {row: found["test"] for row, found in rows.items() if "test" in found}
        if KIND not in losses:
            sentences.append(f"{task}: KIND could not be measured.")
            continue
        told = [f"{task}: KIND {losses[KIND]:.4f}"]
        adapters = [row for row in ADAPTERS if row in losses]
        if adapters:
            best = min(adapters, key=lambda row: losses[row])
            told.append(_against(losses, best, f"the best adapter at as many trained numbers ({title_of(best)})"))
        told += [
            _against(losses, row, text)
            for row, text in (
                (CONTROL, "per-class LoRA on the dense twin, the control"),
                (FULL, "full fine-tuning"),
                (SCRATCH, "training from scratch"),
            )
            if row in losses
        ]
        sentences.append("; ".join(told) + ".")
        if summary["study"] == "shift" and FULL in losses and SCRATCH in losses:
            hurt = losses[FULL] > (1 + TIE) * losses[SCRATCH]
            sentences.append(
                f"{task}: carrying everything over {'hurts' if hurt else 'does not hurt'} (full fine-tuning against "
                f"scratch: {_change(losses[FULL], losses[SCRATCH])})."
            )
    return sentences


def transfers_figure(summary: Mapping[str, Any]) -> Figure:
    """A column a task: test loss against trained numbers, and validation loss against steps."""
    tasks = summary["tasks"]
    figure = Figure(figsize=(4.6 * len(tasks), 7.0), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
    shares = summary["settings"]["milestones"]
    steps = [share * summary["settings"]["steps"] for share in shares]
    for column, (task, rows) in enumerate(tasks.items()):
        above, below = axes[0, column], axes[1, column]
        for row, found in rows.items():
            if "test" not in found:
                continue
            colour = _colour(row)
            bars = [[found["test"] - found["least"]], [found["most"] - found["test"]]]
            marker = "s" if row.endswith(EQUAL) else "o"
            above.errorbar([found["trainable"]], [found["test"]], bars, fmt=marker, ms=4, color=colour, capsize=2)
            above.annotate(
                row, (found["trainable"], found["test"]), fontsize=6, xytext=(3, 3), textcoords="offset points"
            )
            strong = row in (KIND, CONTROL, FULL, SCRATCH)
            below.plot(
                steps, found["validation"], color=colour, lw=1.8 if strong else 0.8, label=row if strong else None
            )
        above.set(title=task, xlabel="trained numbers", ylabel="test loss", xscale="log", yscale="log")
        below.set(xlabel="steps", ylabel="validation loss", yscale="log")
        below.legend(frameon=False, fontsize=7)
        for part in (above, below):
            part.grid(alpha=0.25, which="both")
    return figure


def transfers_table(summary: Mapping[str, Any]) -> str:
    """What the figures say, and a table a task, as Markdown."""
    lines = [f"- {sentence}" for sentence in verdict(summary)]
    for task, rows in summary["tasks"].items():
        lines += ["", f"**{task}**", "", f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(rows)]
        refused = [f"{title_of(row)}: {found['refused']}" for row, found in rows.items() if "refused" in found]
        lines += ["", *refused] if refused else []
    return "\n".join(lines) + "\n"


def title_of(row: str) -> str:
    """``LoRA, as many numbers as KIND``."""
    name, _, equal = row.partition("-")
    return STRATEGIES[name].title + (", as many numbers as KIND" if equal else "")


def _cells(rows: Mapping[str, Any]) -> list[list[str]]:
    """The table's rows, the lowest test loss first."""
    kind = rows.get(KIND, {}).get("test")
    measured = sorted((row for row in rows if "test" in rows[row]), key=lambda row: rows[row]["test"])
    cells = []
    for row in measured:
        found = rows[row]
        spread = f" ({found['least']:.4f} to {found['most']:.4f})" if found["most"] > found["least"] else ""
        rates = ", ".join(f"{rate:g}" for rate in sorted(set(found["rates"])))
        cells.append(
            [
                title_of(row),
                "-" if found["rank"] is None else str(found["rank"]),
                f"{found['trainable']:,}",
                f"{found['travels']:,}",
                f"{found['macs']:,}",
                rates,
                f"{found['test']:.4f}{spread}",
                "" if kind is None or row == KIND else _change(found["test"], kind),
            ]
        )
    return cells


def _page(summary: Mapping[str, Any], picture: str) -> str:
    """Everything on one self-contained page."""
    title = {"novel": "Transfer to novel classes", "shift": "Transfer to far domains"}[summary["study"]]
    seeds = ", ".join(map(str, summary["seeds"]))
    parts = [
        f"<p>Scale {summary['scale']}, seeds {seeds}, {summary['settings']['steps']} steps of "
        f"{summary['settings']['batch_size']} images. Loss: mean squared error of v at fixed noise, on images that no "
        "method saw. Every method at the best of three learning rates, chosen on other images.</p><ul>",
        *(f"<li>{html.escape(sentence)}</li>" for sentence in verdict(summary)),
        f'</ul><img alt="loss against trained numbers and steps" src="{picture}">',
    ]
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    for task, rows in summary["tasks"].items():
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>" for cells in _cells(rows)
        )
        parts.append(f"<h2>{html.escape(task)}</h2><table><tr>{head}</tr>{body}</table>")
    return _PAGE.format(title=title, body="\n".join(parts))


def _against(losses: Mapping[str, float], row: str, text: str) -> str:
    """How KIND's loss stands to that of another row."""
    ratio = losses[KIND] / losses[row]
    if abs(ratio - 1) < TIE:
        return f"even with {text}"
    return f"{_change(losses[KIND], losses[row])} against {text}"


def _change(loss: float, other: float) -> str:
    return f"{100 * (loss / other - 1):+.1f} %"


def _colour(row: str) -> str:
    name = row.partition("-")[0]
    if name.startswith("kind"):
        return "#1f5fa8"
    return {"class_lora": "#d9662b", "full_finetune": "#444444", "scratch": "#999999"}.get(name, "#2d8a57")
