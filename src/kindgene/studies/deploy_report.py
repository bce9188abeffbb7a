"""The deploy study's report, over seeds: a table a class set, quality against costs, samples, what the figures say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kindgene.evaluation.plots import png
from kindgene.studies.deploy import CUT, DENSE, MERGED, ROWS, SCRATCH, WHOLE
from kindgene.studies.page import Picture, Report, Table, write_report
from kindgene.studies.pretraining import REAL
from kindgene.studies.samples import samples_picture
from kindgene.studies.spread import Spread, against, spread, spreads, told
from kindgene.studies.wording import of_data, of_features, of_judge, of_loss, share

_COLOURS: Mapping[str, str] = {
    WHOLE: "#1f5fa8",
    MERGED: "#2d8a57",
    CUT: "#7fb0e0",
    DENSE: "#444444",
    SCRATCH: "#d9662b",
}
_SHORT: Mapping[str, str] = {
    WHOLE: "KIND",
    MERGED: "KIND, merged",
    CUT: "KIND, cut",
    DENSE: "the dense twin",
    SCRATCH: "dense, trained anew",
}
_COUNTED = ("parameters", "macs", "bytes", "test")


def write_deploy(folder: Path, results: Sequence[Mapping[str, Any]]) -> Report:
    """Writes the report of `Deploy` results, one a seed, into `folder`."""
    summary = summarise(results)
    report = deploy_report(summary, results[0]["pictures"])
    write_report(folder, summary, results, report)
    return report


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over seeds. A row that one seed could not measure is not told of the others either."""
    sets = {}
    for count, first in results[0]["sets"].items():
        rows = {row: _over_seeds([result["sets"][count]["rows"][row] for result in results]) for row in first["rows"]}
        sets[count] = {"classes": first["classes"], "real": first["real"], "rows": rows}
    return {
        "study": "deploy",
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "sets": sets,
    }


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    refused = [run["refused"] for run in runs if "refused" in run]
    if refused:
        return {"refused": refused[0]}
    found: dict[str, Any] = {key: spread([run[key] for run in runs]) for key in _COUNTED}
    found["recognised"] = spreads([run["recognised"] for run in runs])
    found["fd"] = spreads([run["fd"] for run in runs])
    found["latency"] = {size: spreads([run["latency"][size] for run in runs]) for size in runs[0]["latency"]}
    if "curve" in runs[0]:
        found |= {"rate": runs[0]["rate"], "curve": [spread(point) for point in zip(*_curves(runs), strict=True)]}
    return found


def _curves(runs: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    return [run["curve"] for run in runs]


def deploy_report(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> Report:
    """The report of a summary; `pictures`: where the cells' strips lie."""
    settings, base = summary["settings"], summary["settings"]["pretraining"]
    counts = _joined(list(summary["sets"]))
    about = (
        f"The pretrain study's models, of {of_data(base, base['classes'])}, deployed for {counts} of these classes, "
        "evenly spaced. KIND is recombined: learngene and the tailors of these classes, whole, and with "
        f"{100 * settings['share']:.0f} % of those parameters (components dropped by what they are worth on training "
        "images). The dense twin, pre-trained on all base classes for as many steps, is asked for these classes and "
        "keeps their label rows. A dense DiT as large as the whole recombined model is trained from scratch on these "
        f"classes alone, {base['steps']:,} steps of {base['batch_size']} images too, at the dense twin's best rate: it "
        "sees each of its classes more often than the others did, and is trained anew for every set. Of all base "
        "classes it is the pretrain study's dense model of as many stored parameters, at its own best rate.",
        f"Loss: mean squared error of {of_loss(base)} at fixed noise, on test images of these classes. Recognised: the "
        f"share of samples that {of_judge(base)} takes for the class asked for, among all {base['classes']} base "
        f"classes whatever the set. FD: Frechet distance of {of_features(base)}'s features from the training images of "
        "these classes, with as many samples for every model: it compares within a table alone. Bytes: of the "
        "safetensors file. Latency: the fastest of many forward passes, in turn with the dense twin's (on one CPU "
        "thread its processor time); it depends on the machine, so the ratio says more than the milliseconds.",
    )
    costs = Picture(
        "costs",
        "Quality against costs, a column a class set: down and to the left is better for the loss, up and to the left "
        "for what is recognised. Bars: least to most of the seeds.",
        png(_costs(summary)),
    )
    strips: dict[str, str] = {}
    for count, found in summary["sets"].items():
        rows = [row for row in found["rows"] if "refused" not in found["rows"][row]]
        strips |= {f"{count} {row}": pictures[f"{count}/{row}"] for row in (REAL, *rows)}
    guidance = base["guidances"][-1]
    samples = samples_picture(
        strips, f"Two samples of each of up to eight classes, guidance {guidance}, the same noise for all of a set."
    )
    tables = [_table(count, found) for count, found in summary["sets"].items()]
    return Report("Deployment: recombined against dense", about, verdict(summary), tables, [costs, samples])


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """For each class set how KIND stands to the dense models, then sizes and latency over the sets."""
    base = summary["settings"]["pretraining"]["classes"]
    sentences = [
        _of_set(count, found["rows"], len(summary["seeds"]), base / int(count))
        for count, found in summary["sets"].items()
        if _measured(found["rows"], WHOLE, DENSE)
    ]
    pairs = {
        count: (found["rows"][WHOLE], found["rows"][DENSE])
        for count, found in summary["sets"].items()
        if _measured(found["rows"], WHOLE, DENSE)
    }
    if pairs:
        single = summary["sets"].get("1", {"rows": {}})["rows"]
        sentences += [_of_sizes(pairs), _of_latency(pairs, single[MERGED] if _measured(single, MERGED) else None)]
    return sentences


def _of_set(count: str, rows: Mapping[str, Any], seeds: int, often: float) -> str:
    """`often`: how much more often a model of these classes alone sees each of them in as many steps."""
    kind, dense = rows[WHOLE], rows[DENSE]
    parts = [
        f"{_classes(count)}: KIND with {_ratio(kind['parameters'], dense['parameters'])} of the dense twin's "
        f"parameters and {_ratio(kind['macs'], dense['macs'])} of its multiply-adds: test loss "
        f"{against(kind['test'], dense['test'], seeds)}{_recognised_against(kind, dense)}"
    ]
    if _measured(rows, SCRATCH):
        other = rows[SCRATCH]
        seen = "" if often == 1 else f", which saw each of them {often:.2g} times as often"
        parts.append(
            f"against a dense DiT of that size trained on these classes alone{seen}: test loss "
            f"{against(kind['test'], other['test'], seeds)}{_recognised_against(kind, other)}"
        )
    if _measured(rows, CUT):
        cut = rows[CUT]
        parts.append(
            f"with {_ratio(cut['parameters'], kind['parameters'])} of its own parameters, nothing trained, against the "
            f"whole one: test loss {against(cut['test'], kind['test'], seeds)}{_recognised_against(cut, kind)}"
        )
    elif CUT in rows:
        parts.append("it cannot be made so much smaller as was asked")
    return "; ".join(parts) + "."


def _of_sizes(pairs: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    smaller = [
        count for count, (kind, dense) in pairs.items() if kind["parameters"]["mean"] < dense["parameters"]["mean"]
    ]
    if len(smaller) == len(pairs):
        return "KIND has fewer parameters than the dense twin for every number of classes tried."
    if not smaller:
        return "KIND has more parameters than the dense twin for every number of classes tried."
    larger = _joined([count for count in pairs if count not in smaller])
    return f"KIND has fewer parameters than the dense twin for class sets of {_joined(smaller)}, more for {larger}."


def _of_latency(
    pairs: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]], merged: Mapping[str, Any] | None
) -> str:
    told_sizes = []
    for size in next(iter(pairs.values()))[0]["latency"]:
        ratios = [kind["latency"][size]["ratio"]["mean"] for kind, _ in pairs.values()]
        told_sizes.append(f"{_range(ratios)} times with {size} image{'s' * (size != '1')}")
    macs = [kind["macs"]["mean"] / dense["macs"]["mean"] for kind, dense in pairs.values()]
    return (
        f"A forward of KIND takes, against the dense twin's, {', '.join(told_sizes)}, on {_range(macs)} times "
        f"its multiply-adds (on this machine){_of_merged(merged)}."
    )


def _of_merged(merged: Mapping[str, Any] | None) -> str:
    """What one class merged into plain layers takes."""
    if merged is None:
        return ""
    times = [f"{one['ratio']['mean']:.2f} times with {size}" for size, one in merged["latency"].items()]
    return f"; merged into plain layers, one class takes {', '.join(times)}"


def _range(figures: Sequence[float]) -> str:
    """``1.25 to 1.50``, or one figure where all are the same."""
    least, most = f"{min(figures):.2f}", f"{max(figures):.2f}"
    return least if least == most else f"{least} to {most}"


def _recognised_against(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """At the last guidance; nothing where nobody could judge."""
    if not one["recognised"]:
        return ""
    guidance = list(one["recognised"])[-1]
    mine, its = one["recognised"][guidance], other["recognised"][guidance]
    return f", recognised {told(mine, '.1%')} against {told(its, '.1%')} at guidance {guidance}"


def _measured(rows: Mapping[str, Any], *names: str) -> bool:
    return all(name in rows and "refused" not in rows[name] for name in names)


def _ratio(one: Spread, other: Spread) -> str:
    return f"{100 * one['mean'] / other['mean']:.0f} %"


def _classes(count: str) -> str:
    return f"{count} {'class' if count == '1' else 'classes'}"


def _joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _costs(summary: Mapping[str, Any]) -> Figure:
    """A column a class set: test loss against parameters and multiply-adds, what is recognised against parameters."""
    sets = summary["sets"]
    judged = all(row["recognised"] for found in sets.values() for row in found["rows"].values() if "test" in row)
    guidance = str(summary["settings"]["pretraining"]["guidances"][-1])
    panels = [("parameters", "parameters", "test"), ("macs", "multiply-adds", "test")]
    panels += [("parameters", "parameters", "recognised")] if judged else []
    figure = Figure(figsize=(2.9 * len(sets) + 0.4, 2.5 * len(panels) + 0.5), layout="constrained")
    every = figure.subplots(len(panels), len(sets), squeeze=False)
    for (cost, title, quality), line in zip(panels, every, strict=True):
        for (count, found), axes in zip(sets.items(), line, strict=True):
            for row, one in found["rows"].items():
                if "refused" in one or (quality == "recognised" and guidance not in one["recognised"]):
                    continue  # what cannot be guided is not compared with what is
                figures = one["test"] if quality == "test" else one["recognised"][guidance]
                bars = [[figures["mean"] - figures["least"]], [figures["most"] - figures["mean"]]]
                form = {"fmt": "o", "color": _COLOURS[row], "capsize": 2, "label": _SHORT[row]}
                axes.errorbar([one[cost]["mean"]], [figures["mean"]], bars, **form)
            axes.set_title(_classes(count), fontsize=9)
            axes.set_xlabel(title, fontsize=8)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=4)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.25)
        line[0].set_ylabel("test loss" if quality == "test" else "recognised", fontsize=8)
    figure.legend(*every[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _table(count: str, found: Mapping[str, Any]) -> Table:
    """A row a model; below, real images, what could not be, and whether the one from scratch was trained too long."""
    rows = {row: one for row, one in found["rows"].items() if "refused" not in one}
    some = next(iter(rows.values()), None)
    sizes, guidances = ([], []) if some is None else (list(some["latency"]), list(some["fd"]))
    head = ["model", "parameters", "multiply-adds", "bytes"]
    head += [part for size in sizes for part in (f"ms, batch {size}", f"of the dense twin's, batch {size}")]
    head += ["test loss", *(f"{what}, guidance {g}" for g in guidances for what in ("recognised", "FD"))]
    cells = []
    for row, one in rows.items():
        line = [ROWS[row], *(told(one[key], ",.0f") for key in ("parameters", "macs", "bytes"))]
        for size in sizes:
            line += [
                f"{one['latency'][size]['milliseconds']['mean']:.2f}",
                f"{one['latency'][size]['ratio']['mean']:.2f}",
            ]
        line.append(told(one["test"]))
        for guidance in guidances:
            line.append(told(one["recognised"][guidance], ".1%") if guidance in one["recognised"] else "-")
            line.append(told(one["fd"][guidance], ".2f") if guidance in one["fd"] else "-")
        cells.append(line)
    real = found["real"]
    notes = [f"Real test images: {share(real['recognised'])} recognised, FD {real['fd']:.2f}."]
    notes += [f"{ROWS[row]}: {one['refused']}" for row, one in found["rows"].items() if "refused" in one]
    if SCRATCH in rows:
        means = [point["mean"] for point in rows[SCRATCH]["curve"]]
        if min(means) < means[-1]:
            notes.append(
                f"From scratch, the validation loss was least on the way ({min(means):.4f}) and is {means[-1]:.4f} at "
                "the end: fewer steps would have served it better."
            )
    title = _classes(count) + (f": {', '.join(found['classes'])}" if len(found["classes"]) <= 24 else "")
    return Table(title, head, cells, notes)
