"""The pretrain study's report, over seeds: a table, curves, samples, and what the figures say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kindgene.evaluation.plots import png
from kindgene.studies.page import Picture, Report, Table, write_report
from kindgene.studies.pretraining import MODELS
from kindgene.studies.samples import samples_picture
from kindgene.studies.spread import against, at_edge, spread, spreads, told
from kindgene.studies.wording import of_data, of_features, of_judge, of_loss, share

_EARLY = 0.25
"""Share of the steps after which losses at all learning rates are told, beside those at the end."""

_COLOURS = ("#1f5fa8", "#444444", "#2d8a57", "#d9662b")


def write_pretrain(folder: Path, results: Sequence[Mapping[str, Any]]) -> Report:
    """Writes the report of `Pretraining` results, one a seed, into `folder`."""
    summary = summarise(results)
    report = pretrain_report(summary, results[0]["pictures"])
    write_report(folder, summary, results, report)
    return report


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over seeds; costs are the same in all seeds. A model that diverged is left out."""
    models = {}
    for name in MODELS:
        runs = [result["models"][name] for result in results]
        models[name] = {
            **{key: runs[0][key] for key in ("parameters", "macs", "one_class", "rate", "rates")},
            "test": spread([run["test"] for run in runs]),
            "recognised": spreads([run["recognised"] for run in runs]),
            "fd": spreads([run["fd"] for run in runs]),
            "validation": [spread(point) for point in zip(*(run["validation"] for run in runs), strict=True)],
            "seconds": [run["seconds"] for run in runs],
        }
    return {
        "study": "pretrain",
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "real": results[0]["real"],
        "models": models,
    }


def pretrain_report(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> Report:
    """The report of a summary; `pictures`: where the cells' strips lie."""
    settings = summary["settings"]
    about = (
        f"{of_data(settings, settings['classes'])}; width {settings['width']}, {settings['depth']} blocks, N_G "
        f"{settings['learngene_rank']}, N_T {settings['tailor_rank']}; {settings['steps']:,} steps of "
        f"{settings['batch_size']} images for every model, each at the best of {len(settings['rates'])} learning rates "
        "(chosen on validation images with seed 0). Loss: mean squared error of "
        f"{of_loss(settings)} at fixed noise, on test images. Recognised: the share of samples that "
        f"{of_judge(settings)} takes for the class asked for; of real images it recognises "
        f"{share(summary['real']['recognised'])}. FD: Frechet distance of {of_features(settings)}'s features from the "
        f"training images (real test images: {summary['real']['fd']:.2f}); it compares within this table alone.",
    )
    samples = samples_picture(
        {"real": pictures["real"], **{name: pictures[f"{name}/final"] for name in MODELS}},
        f"Two samples of each of eight classes, guidance {settings['guidances'][-1]}, the same noise for all models.",
    )
    curves = Picture("curves", "Validation loss on the way; bars: least to most of the seeds.", png(_curves(summary)))
    return Report(
        "Pre-training: decomposable against dense",
        about,
        verdict(summary),
        [_table(summary), *_by_rate(summary)],
        [curves, samples],
    )


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """How KIND stands to each of the three others: loss, and distance and what is recognised of unguided samples."""
    kind, seeds = summary["models"]["decomposable"], len(summary["seeds"])
    first = next(iter(kind["fd"]))
    sentences = []
    for name, text in list(MODELS.items())[1:]:
        other = summary["models"][name]
        sentences.append(
            f"KIND against {text}: test loss {against(kind['test'], other['test'], seeds)}; FD without guidance "
            f"{against(kind['fd'][first], other['fd'][first], seeds)}{_recognised(kind, other, first)}."
        )
    return sentences


def _recognised(one: Mapping[str, Any], other: Mapping[str, Any], guidance: str) -> str:
    """Nothing where nobody could judge."""
    if guidance not in one["recognised"]:
        return ""
    mine, its = one["recognised"][guidance], other["recognised"][guidance]
    return f", recognised {told(mine, '.1%')} against {told(its, '.1%')}"


def _curves(summary: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    steps = [share * summary["settings"]["steps"] for share in summary["settings"]["milestones"]]
    for (name, found), colour in zip(summary["models"].items(), _COLOURS, strict=True):
        means = [point["mean"] for point in found["validation"]]
        below = [point["mean"] - point["least"] for point in found["validation"]]
        above = [point["most"] - point["mean"] for point in found["validation"]]
        axes.errorbar(
            steps, means, [below, above], color=colour, marker="o", ms=4, lw=1.5, capsize=2, label=MODELS[name]
        )
    axes.set(xlabel="steps", ylabel="validation loss")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    return figure


def _table(summary: Mapping[str, Any]) -> Table:
    guidances = list(summary["models"]["decomposable"]["fd"])
    head = ["model", "stored", "for one class", "multiply-adds", "rate", "test loss"]
    head += [f"{what}, guidance {guidance}" for guidance in guidances for what in ("recognised", "FD")]
    rows = []
    for name, found in summary["models"].items():
        edge = " (edge of the grid)" if at_edge(found["rate"], found["rates"]) else ""
        row = [MODELS[name], f"{found['parameters']:,}", f"{found['one_class']:,}", f"{found['macs']:,}"]
        row += [f"{found['rate']:g}{edge}", told(found["test"])]
        for guidance in guidances:
            row += [told(found["recognised"][guidance], ".1%"), told(found["fd"][guidance], ".2f")]
        rows.append(row)
    return Table("", head, rows)


def _by_rate(summary: Mapping[str, Any]) -> list[Table]:
    """Validation losses at every learning rate, on the way and at the end: no table where there was but one rate."""
    models, milestones = summary["models"], summary["settings"]["milestones"]
    rates = list(models["decomposable"]["rates"])
    if len(rates) < 2:
        return []
    early = next(index for index, share_of_steps in enumerate(milestones) if share_of_steps >= _EARLY)
    title = f"Validation loss by learning rate, seed 0: after {milestones[early]:.0%} of the steps and at the end"
    rows = []
    for rate in rates:
        curves = {name: found["rates"][rate] for name, found in models.items()}
        both = [(curve[early], curve[-1]) if curve else None for curve in curves.values()]
        row = [rate, *("diverged" if pair is None else f"{pair[0]:.4f}, {pair[1]:.4f}" for pair in both)]
        mine, its = curves["decomposable"], curves["dense"]
        change = [f"{100 * (mine[index] / its[index] - 1):+.1f} %" for index in (early, -1)] if mine and its else []
        rows.append([*row, ", ".join(change) or "-"])
    return [Table(title, ["rate", *MODELS.values(), "KIND against the dense twin"], rows)]
