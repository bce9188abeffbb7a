"""The novel and the shift study's reports, over seeds: a table and samples a task, curves, what the figures say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from kindgene.evaluation.plots import png
from kindgene.studies.page import Picture, Report, Table, write_report
from kindgene.studies.pretraining import REAL
from kindgene.studies.samples import samples_picture
from kindgene.studies.spread import TIE, against, apart, at_edge, spread, spreads, told
from kindgene.studies.transfer_settings import EQUAL, KIND
from kindgene.studies.wording import of_data, of_features, of_judge, of_loss, share
from kindgene.transfer.strategies import STRATEGIES

CONTROL, FULL, SCRATCH, NULL_TAILOR = f"class_lora-{EQUAL}", "full_finetune", "scratch", "kind_null_tailor"
_COLOURS = {
    KIND: "#1f5fa8",
    NULL_TAILOR: "#6aa3dd",
    "kind_everything": "#7d4fb0",
    CONTROL: "#d9662b",
    FULL: "#222222",
    SCRATCH: "#999999",
    f"lora-{EQUAL}": "#2d8a57",
}
"""Rows whose curves are named; all others are drawn in one pale colour."""
_OTHERS = "#b9c4cc"
_WORSE = 1.1
"""Guidance hurts where it raises a Frechet distance more than so many times (ours)."""
ADAPTERS = tuple(f"{name}-{EQUAL}" for name in ("lora", "dora", "pissa", "loha", "oft"))
FAR_JUDGE = ", far sets whose classes are no glyphs by a support vector machine trained on their own images"
TITLES = {"novel": "Transfer to novel classes", "shift": "Transfer to far domains"}
_SHORT = {
    "kind": "KIND",
    "kind_null_tailor": "KIND, new null tailor",
    "kind_everything": "KIND, all trained",
    "linear_probe": "label table, final layer",
    "class_lora": "per-class LoRA",
    "heur_lg": "Heur-LG",
    "auto_lg": "Auto-LG",
}
_COSTS = ("rank", "trainable", "travels", "parameters", "macs", "rate", "rates")


def write_transfers(folder: Path, results: Sequence[Mapping[str, Any]]) -> Report:
    """Writes the report of `Transfers` results, one a seed, of one study and scale, into `folder`."""
    summary = summarise(results)
    report = transfers_report(summary, results[0]["pictures"])
    write_report(folder, summary, results, report)
    return report


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over seeds; costs are those of the first seed, which all share."""
    tasks = {}
    for task, first in results[0]["tasks"].items():
        rows = {row: _over_seeds([result["tasks"][task]["rows"][row] for result in results]) for row in first["rows"]}
        tasks[task] = {"classes": first["classes"], "real": first["real"], "rows": rows}
    return {
        "study": results[0]["study"],
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "costs": results[0]["costs"],
        "tasks": tasks,
    }


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    refused = [run["refused"] for run in runs if "refused" in run]
    if refused:
        return {"refused": refused[0]}
    return {
        **{key: runs[0][key] for key in _COSTS},
        "test": spread([run["test"] for run in runs]),
        "recognised": spreads([run["recognised"] for run in runs]),
        "fd": spreads([run["fd"] for run in runs]),
        "validation": [spread(point) for point in zip(*(run["validation"] for run in runs), strict=True)],
        "blocks": [run["blocks"] for run in runs],
        "seconds": [run["seconds"] for run in runs],
    }


def transfers_report(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> Report:
    """The report of a summary; `pictures`: where the cells' strips lie."""
    settings, base = summary["settings"], summary["settings"]["pretraining"]
    far = summary["study"] == "shift" and "source" not in base
    about = (
        f"Models of {of_data(base, base['classes'])} (the pretrain study's: decomposable, and its dense twin) are "
        f"transferred to new classes in {settings['steps']} steps of {settings['batch_size']} images, the same batches "
        "and noise for every method, each at the best learning rate of its grid (validation images, seed 0). Loss: "
        f"mean squared error of {of_loss(base)} at fixed noise, on images that no method saw. "
        f"“{title_of('lora-equal')}” is at the rank that trains as many numbers as KIND. Travels: numbers that someone "
        "who has what was pre-trained still needs. Multiply-adds: of use, adapters merged. Steps (forward, backward, "
        "update) are timed in turns; memory is counted: weights, gradients, moments, averages, what is kept for "
        "backward. Recognised: by "
        f"{of_judge(base)}{FAR_JUDGE if far else ''}. FD: Frechet distance of {of_features(base)}'s features from the "
        "training images; it compares within a table alone"
        + (", and the network has never seen such images." if far else "."),
    )
    drawn = []
    for task, found in summary["tasks"].items():
        rows = [row for row in found["rows"] if f"{task}/{row}" in pictures and "refused" not in found["rows"][row]]
        strips = {"real": pictures[f"{task}/{REAL}"], **{short(row): pictures[f"{task}/{row}"] for row in rows}}
        guidance = base["guidances"][-1]
        drawn.append(
            samples_picture(
                strips, f"{task}: two samples a class, guidance {guidance}, the same noise.", f"samples-{task}"
            )
        )
    losses = Picture(
        "losses",
        "Test loss by method, and against trained numbers (squares: as many as KIND); validation loss against steps. "
        "Bars: least to most of the seeds.",
        png(_losses(summary)),
    )
    tables = [_table(task, found, summary["costs"]) for task, found in summary["tasks"].items()]
    return Report(TITLES[summary["study"]], about, verdict(summary), tables, [losses, *drawn])


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the figures of each task say."""
    seeds, sentences = len(summary["seeds"]), []
    for task, found in summary["tasks"].items():
        tests = {row: one["test"] for row, one in found["rows"].items() if "test" in one}
        if KIND not in tests:
            sentences.append(f"{task}: KIND could not be measured.")
            continue
        pairs = []
        adapters = [row for row in ADAPTERS if row in tests]
        if adapters:
            best = min(adapters, key=lambda row: tests[row]["mean"])
            pairs.append((best, f"the best adapter at as many trained numbers ({title_of(best)})"))
        pairs += [
            (row, text)
            for row, text in (
                (CONTROL, "per-class LoRA on the dense twin, the control"),
                (FULL, "full fine-tuning"),
                (SCRATCH, "training from scratch"),
            )
            if row in tests
        ]
        told_pairs = "; ".join(f"against {text}: {against(tests[KIND], tests[row], seeds)}" for row, text in pairs)
        sentences.append(f"{task}: test loss of KIND {told(tests[KIND])}; {told_pairs}.")
        compared = [KIND, *(row for row in (NULL_TAILOR,) if row in tests), *(row for row, _ in pairs)]
        sentences += _who_is_recognised(task, found["rows"], compared)
        sentences += _guided(task, found["rows"], compared)
        if summary["study"] == "shift" and FULL in tests and SCRATCH in tests:
            sentences.append(_negative_transfer(task, tests, seeds))
    return sentences


def _who_is_recognised(task: str, rows: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What is recognised of samples without guidance; [] where nobody could judge."""
    if not rows[KIND]["recognised"]:
        return []
    guidance = next(iter(rows[KIND]["recognised"]))
    shares = ", ".join(f"{short(row)} {told(rows[row]['recognised'][guidance], '.1%')}" for row in names)
    return [f"{task}: recognised at guidance {guidance}: {shares}."]


def _guided(task: str, rows: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What guidance does to the distance from real images; [] where samples are drawn at one guidance alone.

    KIND is guided away from the learngene alone, which has not seen these images; fine-tuned models from a null class
    that has.
    """
    guidances = list(rows[KIND]["fd"])
    if len(guidances) == 1:
        return []
    first, last = guidances[0], guidances[-1]
    change = {row: (rows[row]["fd"][first]["mean"], rows[row]["fd"][last]["mean"]) for row in names}
    told_all = ", ".join(f"{short(row)} {before:.1f} to {after:.1f}" for row, (before, after) in change.items())
    sentence = f"{task}: FD from guidance {first} to {last}: {told_all}."
    before, after = change[KIND]
    full_before, full_after = change.get(FULL, (before, before))
    if after > _WORSE * before and after / before > _WORSE * full_after / full_before:
        full = "better" if full_after < full_before else "hardly worse"
        sentence += (
            f" Guidance makes KIND's samples worse here, full fine-tuning's {full}: KIND's null class is the learngene "
            "alone, which has not seen such images."
        )
        if NULL_TAILOR in change:
            mended = change[NULL_TAILOR][1] < 0.5 * (after + before)
            sentence += f" A null tailor of its own {'mends that' if mended else 'does not mend that'}."
    return [sentence]


def _negative_transfer(task: str, tests: Mapping[str, Mapping[str, float]], seeds: int) -> str:
    full, scratch, kind = tests[FULL], tests[SCRATCH], tests[KIND]
    hurts = full["mean"] > (1 + TIE) * scratch["mean"] and (seeds == 1 or apart(full, scratch))
    avoids = kind["mean"] < (1 + TIE) * scratch["mean"]
    said = "hurts here (negative transfer)" if hurts else "does not hurt here (no negative transfer to avoid)"
    return (
        f"{task}: carrying everything over {said}: full fine-tuning against scratch "
        f"{against(full, scratch, seeds)}; the learngene alone with fresh tailors is "
        f"{'not worse than' if avoids else 'worse than'} scratch."
    )


def title_of(row: str) -> str:
    """``LoRA, as many numbers as KIND``."""
    name, _, equal = row.partition("-")
    return STRATEGIES[name].title + (", as many numbers as KIND" if equal else "")


def short(row: str) -> str:
    """``LoRA (equal)``: for sentences and axes."""
    name, _, equal = row.partition("-")
    return _SHORT.get(name, STRATEGIES[name].title) + (" (equal)" if equal else "")


def _losses(summary: Mapping[str, Any]) -> Figure:
    """A row a task: test losses in order, the same against trained numbers, and validation losses against steps."""
    tasks = {
        task: sorted((row for row in found["rows"] if "test" in found["rows"][row]), key=lambda row: _mean(found, row))
        for task, found in summary["tasks"].items()
    }
    figure = Figure(figsize=(12.5, sum(1.2 + 0.2 * len(rows) for rows in tasks.values())), layout="constrained")
    heights = [1.2 + 0.2 * len(rows) for rows in tasks.values()]
    axes = figure.subplots(len(tasks), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    steps = [share * summary["settings"]["steps"] for share in summary["settings"]["milestones"]]
    for (task, order), (left, middle, right) in zip(tasks.items(), axes, strict=True):
        rows = summary["tasks"][task]["rows"]
        for place, row in enumerate(order):
            one, colour, test = rows[row], _COLOURS.get(row, _OTHERS), rows[row]["test"]
            bars = [[test["mean"] - test["least"]], [test["most"] - test["mean"]]]
            form = {"fmt": "s" if row.endswith(EQUAL) else "o", "ms": 4, "color": colour, "capsize": 2}
            left.errorbar([test["mean"]], [place], xerr=bars, **form)
            middle.errorbar([one["trainable"]], [test["mean"]], yerr=bars, **form)
            strong = row in _COLOURS
            means = [point["mean"] for point in one["validation"]]
            right.plot(steps, means, color=colour, lw=1.8 if strong else 0.7, label=short(row) if strong else None)
        left.set(title=task, xlabel="test loss")
        left.set_yticks(range(len(order)), [short(row) for row in order], fontsize=7)
        left.invert_yaxis()
        middle.set(xlabel="trained numbers", ylabel="test loss", xscale="log")
        middle.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        middle.xaxis.set_major_formatter(EngFormatter(sep=""))
        middle.xaxis.set_minor_locator(NullLocator())
        right.set(xlabel="steps", ylabel="validation loss")
        if right is axes[0][-1]:
            right.legend(frameon=False, fontsize=7)
        for part in (left, middle, right):
            part.grid(alpha=0.25)
    return figure


def _mean(found: Mapping[str, Any], row: str) -> float:
    mean: float = found["rows"][row]["test"]["mean"]
    return mean


def _table(task: str, found: Mapping[str, Any], costs: Mapping[str, Any]) -> Table:
    """The lowest test loss first; below, what could not be measured."""
    rows = found["rows"]
    measured = sorted((row for row in rows if "test" in rows[row]), key=lambda row: rows[row]["test"]["mean"])
    kind = rows.get(KIND, {}).get("test")
    guidances = list(rows[measured[0]]["fd"]) if measured else []
    head = ["method", "rank", "trained", "travels", "multiply-adds", "ms a step", "MB to train"]
    head += ["rate", "test loss", "against KIND"]
    head += [f"{what}, guidance {guidance}" for guidance in guidances for what in ("recognised", "FD")]
    cells = []
    for row in measured:
        one = rows[row]
        edge = " (edge of the grid)" if at_edge(one["rate"], one["rates"]) else ""
        change = "" if kind is None or row == KIND else f"{100 * (one['test']['mean'] / kind['mean'] - 1):+.1f} %"
        line = [title_of(row), "-" if one["rank"] is None else str(one["rank"]), f"{one['trainable']:,}"]
        line += [f"{one['travels']:,}", f"{one['macs']:,}"]
        line += [f"{1e3 * costs[row]['step_seconds']:.0f}", f"{1e-6 * costs[row]['memory']:.0f}"]
        line += [f"{one['rate']:g}{edge}", told(one["test"]), change]
        for guidance in guidances:
            line += [_recognised(one, guidance), told(one["fd"][guidance], ".2f")]
        cells.append(line)
    real = found["real"]
    judged = "a single class" if real["recognised"] is None else f"{share(real['recognised'])} recognised"
    notes = [f"Real test images: {judged}, FD {real['fd']:.2f}."]
    notes += [f"{title_of(row)} {_blocks(rows[row]['blocks'])}" for row in measured if any(rows[row]["blocks"])]
    notes += [f"{title_of(row)}: {rows[row]['refused']}" for row in rows if "refused" in rows[row]]
    return Table(f"{task}: {', '.join(found['classes'])}", head, cells, notes)


def _recognised(found: Mapping[str, Any], guidance: str) -> str:
    """A dash for a single class, in which there is nothing to recognise."""
    return told(found["recognised"][guidance], ".1%") if found["recognised"] else "-"


def _blocks(of_seeds: Sequence[Sequence[int]]) -> str:
    """``keeps blocks 3, 4 of the dense twin``, counted from 1; of every seed where they differ."""
    told_each = [", ".join(str(block + 1) for block in blocks) for blocks in of_seeds]
    if len(set(told_each)) == 1:
        return f"keeps blocks {told_each[0]} of the dense twin, counted from 1."
    return f"keeps of the dense twin, counted from 1, by seed: blocks {'; '.join(told_each)}."
