"""The ablate study's report, over seeds: a table, dots against the base row, samples, what the figures say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kindgene.core.product import CHUNK
from kindgene.evaluation.plots import png
from kindgene.studies.ablate import (
    BASE,
    BY_CHANCE,
    DROP,
    GROUPS,
    NULL,
    NULL_TAILOR,
    ONE_TAILOR,
    PAPER,
    RANKS,
    SVD_FRESH,
    SVD_TRAINED,
)
from kindgene.studies.page import Picture, Report, Table, write_report
from kindgene.studies.samples import samples_picture
from kindgene.studies.spread import Spread, against, spread, spreads, told
from kindgene.studies.wording import of_data, of_features, of_judge, of_loss

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "N_G against N_T, with N_G + N_T kept": (RANKS,),
    "The class gate": (ONE_TAILOR,),
    "What training begins with": (SVD_FRESH, SVD_TRAINED),
    "The null class": (NULL_TAILOR,),
    "Label drop": (DROP,),
    "Targets": (PAPER,),
    "Classes that share a tailor": (GROUPS, BY_CHANCE),
}
"""What is asked, and the beginnings of the variants' names that answer it."""
_SAME = ("parameters", "macs", "one_class", "rate")


def write_ablate(folder: Path, results: Sequence[Mapping[str, Any]]) -> Report:
    """Writes the report of `Ablate` results, one a seed, into `folder`."""
    summary = summarise(results)
    report = ablate_report(summary, results[0]["pictures"])
    write_report(folder, summary, results, report)
    return report


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over seeds; costs, and which classes share a tailor, are the first seed's."""
    return {
        "study": "ablate",
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "variants": {
            name: _over_seeds([result["variants"][name] for result in results]) for name in results[0]["variants"]
        },
    }


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    refused = [run["refused"] for run in runs if "refused" in run]
    if refused:
        return {"refused": refused[0]}
    entropies = [run["null"]["entropy"] for run in runs if run["null"]["entropy"] is not None]
    return {
        **{key: runs[0][key] for key in _SAME},
        **({"groups": runs[0]["groups"]} if "groups" in runs[0] else {}),
        "test": spread([run["test"] for run in runs]),
        "recognised": spreads([run["recognised"] for run in runs]),
        "fd": spreads([run["fd"] for run in runs]),
        "null_fd": spread([run["null"]["fd"] for run in runs]),
        "null_entropy": spread(entropies) if entropies else None,
        "seconds": [run["seconds"] for run in runs],
    }


def ablate_report(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> Report:
    """The report of a summary; `pictures`: where the cells' strips lie."""
    base = summary["settings"]["pretraining"]
    variants = {name: found for name, found in summary["variants"].items() if "refused" not in found}
    rate = (
        f", {variants[BASE]['rate']:g}, which the base row chose for itself and no variant did"
        if BASE in variants
        else ""
    )
    about = (
        f"The pretrain study's KIND model ({of_data(base, base['classes'])}; N_G {base['learngene_rank']}, N_T "
        f"{base['tailor_rank']}, random components, a tailor a class, null class without one, label drop 0.1, adaLN "
        f"among the targets; {base['steps']:,} steps of {base['batch_size']} images) with one thing changed at a time. "
        f"All have its learning rate{rate}. Loss: mean squared error of {of_loss(base)} at fixed noise, on test "
        f"images. Recognised: by {of_judge(base)}. FD: Frechet distance of {of_features(base)}'s features from the "
        "training images; it compares within this table alone.",
        "Without a class gate all classes share one tailor: nothing but their label rows tells them apart, and the "
        "tailor is more learngene, which only the null class goes without. What the null class draws is what the "
        "learngene alone draws, except where it has a tailor of its own; with label drop 0 it was never trained alone, "
        "nor was the null row. Entropy is that of the classes recognised in these samples, 1 where all come up alike. "
        f"Multiply-adds are those that are computed: tailors are multiplied {CHUNK} components at a time.",
    )
    guidance = base["guidances"][-1]
    dots = Picture(
        "variants",
        "Every variant against the base row (line). Band and bars: least to most of the seeds.",
        png(_dots(summary, variants)),
    )
    samples = samples_picture(
        {name: pictures[name] for name in variants},
        f"Two samples of each of eight classes, guidance {guidance}, the same noise for all variants.",
    )
    alone = samples_picture(
        {name: pictures[f"{name}/{NULL}"] for name in variants},
        "What the null class draws, the same noise for all variants.",
        f"samples-{NULL}",
    )
    tables = [_table(summary), *_groups(summary)]
    return Report("Ablations: one thing changed at a time", about, verdict(summary), tables, [dots, samples, alone])


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """A sentence a question: how each variant's test loss and recognised share stand to the base row's."""
    variants, seeds = summary["variants"], len(summary["seeds"])
    base = variants[BASE]
    if "refused" in base:
        return ["The base row could not be measured."]
    sentences = []
    for question, names in QUESTIONS.items():
        asked = [name for name in variants if name.startswith(names) and name != BASE]
        measured = [name for name in asked if "refused" not in variants[name]]
        parts = [
            f"{title_of(name, summary)}: test loss {against(variants[name]['test'], base['test'], seeds)}"
            f"{_recognised(variants[name])}"
            for name in measured
        ]
        parts += [f"{title_of(name, summary)} could not be trained" for name in asked if name not in measured]
        if names == (RANKS,) and measured:
            best = min([BASE, *measured], key=lambda name: variants[name]["test"]["mean"])
            parts.append(f"the least test loss has {_ranks(best, summary)}")
        if {GROUPS, BY_CHANCE} <= set(measured):
            change = against(variants[GROUPS]["test"], variants[BY_CHANCE]["test"], seeds)
            parts.append(f"look-alikes against groups by chance: test loss {change}")
        if parts:
            sentences.append(f"{question}, against the base row{_recognised(base)}: {'; '.join(parts)}.")
    return sentences


def title_of(name: str, summary: Mapping[str, Any]) -> str:
    """``label drop 0.2``."""
    settings = summary["settings"]
    if name.startswith((f"{RANKS}-", BASE)):
        return _ranks(name, summary) + (" (base row)" if name == BASE else "")
    if name.startswith(f"{DROP}-"):
        return f"label drop {name.removeprefix(f'{DROP}-')}"
    return {
        ONE_TAILOR: "no class gate, one tailor for all",
        SVD_FRESH: "SVD of an untrained dense model",
        SVD_TRAINED: "SVD of the trained dense twin",
        NULL_TAILOR: "a tailor for the null class",
        PAPER: "targets “paper”, adaLN dense",
        GROUPS: f"{settings['groups']} tailors, a group of look-alikes each",
        BY_CHANCE: f"{settings['groups']} tailors, groups by chance",
    }[name]


def _ranks(name: str, summary: Mapping[str, Any]) -> str:
    base = summary["settings"]["pretraining"]
    learngene, tailor = (base["learngene_rank"], base["tailor_rank"]) if name == BASE else name.split("-")[1:]
    return f"N_G {learngene}, N_T {tailor}"


def _recognised(found: Mapping[str, Any]) -> str:
    """At the last guidance; nothing where nobody could judge."""
    if not found["recognised"]:
        return ""
    guidance, figures = list(found["recognised"].items())[-1]
    return f" (recognised {told(figures, '.1%')} at guidance {guidance})"


def _dots(summary: Mapping[str, Any], variants: Mapping[str, Any]) -> Figure:
    base = summary["settings"]["pretraining"]
    first, last = (str(guidance) for guidance in (base["guidances"][0], base["guidances"][-1]))
    panels: list[tuple[str, dict[str, Spread]]] = [("test loss", {key: one["test"] for key, one in variants.items()})]
    if all(one["recognised"] for one in variants.values()):
        recognised = {name: one["recognised"][last] for name, one in variants.items()}
        panels.append((f"recognised, guidance {last}", recognised))
    panels.append((f"FD, guidance {first}", {name: one["fd"][first] for name, one in variants.items()}))
    figure = Figure(figsize=(3.2 * len(panels) + 2.6, 0.9 + 0.27 * len(variants)), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for (title, figures), axes in zip(panels, every, strict=True):
        if BASE in figures:
            axes.axvspan(figures[BASE]["least"], figures[BASE]["most"], color="#1f5fa8", alpha=0.15, lw=0)
            axes.axvline(figures[BASE]["mean"], color="#1f5fa8", lw=1)
        for place, (name, one) in enumerate(figures.items()):
            bars = [[one["mean"] - one["least"]], [one["most"] - one["mean"]]]
            colour = "#1f5fa8" if name == BASE else "#444444"
            axes.errorbar([one["mean"]], [place], xerr=bars, fmt="o", ms=5, color=colour, capsize=2)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    every[0].set_yticks(range(len(variants)), [title_of(name, summary) for name in variants], fontsize=8)
    every[0].invert_yaxis()
    return figure


def _table(summary: Mapping[str, Any]) -> Table:
    variants = summary["variants"]
    measured = {name: found for name, found in variants.items() if "refused" not in found}
    base = measured.get(BASE)
    guidances = list(next(iter(measured.values()))["fd"]) if measured else []
    head = ["variant", "stored", "for one class", "multiply-adds", "test loss", "against the base row"]
    head += [f"{what}, guidance {guidance}" for guidance in guidances for what in ("recognised", "FD")]
    head += ["null class: FD", "entropy"]
    cells = []
    for name, found in measured.items():
        line = [title_of(name, summary), *(f"{found[key]:,}" for key in ("parameters", "one_class", "macs"))]
        change = (
            "" if base is None or name == BASE else f"{100 * (found['test']['mean'] / base['test']['mean'] - 1):+.1f} %"
        )
        line += [told(found["test"]), change]
        for guidance in guidances:
            line.append(told(found["recognised"][guidance], ".1%") if found["recognised"] else "-")
            line.append(told(found["fd"][guidance], ".2f"))
        entropy = found["null_entropy"]
        line += [told(found["null_fd"], ".2f"), "-" if entropy is None else told(entropy, ".2f")]
        cells.append(line)
    notes = [f"{title_of(name, summary)}: {one['refused']}" for name, one in variants.items() if "refused" in one]
    if SVD_TRAINED in measured:
        notes.append("The trained dense twin had as many steps of its own before.")
    return Table("", head, cells, notes)


def _groups(summary: Mapping[str, Any]) -> list[Table]:
    """Which classes share a tailor; where there are many, how many share one."""
    tables = []
    for name, found in summary["variants"].items():
        if "groups" in found:
            few = sum(map(len, found["groups"])) <= 24
            rows = [
                [str(number), str(len(group)), ", ".join(group) if few else f"{group[0]}, ..."]
                for number, group in enumerate(found["groups"], start=1)
            ]
            tables.append(
                Table(f"{title_of(name, summary)} (seed {summary['seeds'][0]})", ["tailor", "classes", "are"], rows)
            )
    return tables
