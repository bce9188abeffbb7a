"""The agnostic study's report, over seeds: a table and samples a model, and a verdict that follows from the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kindgene.studies.agnostic import COMBINATIONS, MODELS, combination
from kindgene.studies.page import Report, Table, write_report
from kindgene.studies.samples import samples_picture
from kindgene.studies.spread import spread, told
from kindgene.studies.wording import of_data, of_judge

FIGURES = ("own", "other", "entropy", "variance", "kurtosis")
WHOLE, SWAPPED, CROSSED, ALONE = "own-own", "other-own", "own-other", "none-none"
PRIMARY, CONTROL = "label-drop-0", "label-rows-only"
MARGIN = 0.1
"""So much of all samples one part must be ahead by, in both swaps, to be said to carry the class (ours)."""


def write_agnostic(folder: Path, results: Sequence[Mapping[str, Any]]) -> Report:
    """Writes the report of `Agnostic` results, one a seed, into `folder`."""
    summary = summarise(results)
    report = agnostic_report(summary, results[0]["pictures"])
    write_report(folder, summary, results, report)
    return report


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over seeds of every figure of every combination; None where a seed lacks it."""
    return {
        "study": "agnostic",
        "scale": results[0]["scale"],
        "seeds": [result["seed"] for result in results],
        "settings": results[0]["settings"],
        "classes": len(results[0]["classes"]),
        "real": {name: _over_seeds([result["real"]["figures"] for result in results], name) for name in FIGURES},
        "models": {
            model: {
                key: {
                    name: _over_seeds([result["models"][model]["combinations"][key] for result in results], name)
                    for name in FIGURES
                }
                for key in COMBINATIONS
            }
            for model in MODELS
        },
    }


def _over_seeds(found: Sequence[Mapping[str, float | None]], name: str) -> dict[str, float] | None:
    values = [one[name] for one in found]
    defined = [value for value in values if value is not None]
    return spread(defined) if len(defined) == len(values) else None


def agnostic_report(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> Report:
    """The report of a summary; `pictures`: where the cells' strips lie."""
    settings = summary["settings"]
    about = (
        f"{of_data(settings, summary['classes'])}; width {settings['width']}, {settings['depth']} blocks, N_G "
        f"{settings['learngene_rank']}, N_T {settings['tailor_rank']}; {settings['steps']:,} steps of "
        f"{settings['batch_size']} images at a learning rate of {settings['learning_rate']:g}, not chosen by a grid; "
        f"{settings['samples']} samples a class and combination, the same noise for "
        f"all, without guidance. What was drawn says {of_judge(settings)}, which saw none of the models: of "
        f"real test images it recognises {told(summary['real']['own'], '.1%')}. “Other” is the next class, whose "
        "components or label row are used where it says so. Entropy, variance and kurtosis are of the classes drawn: "
        "entropy 1 and variance 0 are uniform.",
        "The null class trains a learngene as an unconditional model, so that it draws all classes alike would prove "
        "nothing. The primary model was therefore trained without it (label drop 0): every sample had its class's "
        "tailor beside the learngene.",
    )
    drawn = [
        samples_picture(
            {key: pictures[f"{model}/{key}"] for key in COMBINATIONS},
            f"{title_of(model)}: components-label row, a class a column, the same noise in every row.",
            f"samples-{model}",
        )
        for model in MODELS
    ]
    tables = [_table(model, summary) for model in MODELS]
    return Report("Is the learngene class-agnostic?", about, verdict(summary), tables, drawn)


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What the figures say of the claim that the learngene is class-agnostic; a sentence each."""
    primary, control = summary["models"][PRIMARY], summary["models"][CONTROL]
    swapped, crossed, alone = primary[SWAPPED], primary[CROSSED], primary[ALONE]
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
        f"Whole classes are recognised in {_share(primary[WHOLE]['own'])} of samples; "
        f"chance is {1 / summary['classes']:.1%}.",
        f"With another class's components and its own label row a sample is taken for the other class in "
        f"{_share(swapped['other'])}, for its own in {_share(swapped['own'])}; the other way round for its own in "
        f"{_share(crossed['own'])}, for the other in {_share(crossed['other'])}: {carrier} carries the class.",
        f"The learngene alone, never trained alone, is taken for the class asked for in {_share(alone['own'])}, and "
        f"draws its samples over the classes with an entropy of {told(alone['entropy'], '.2f')} of uniform (real "
        f"images: {told(summary['real']['entropy'], '.2f')}).",
        f"Without tailors (N_T = 0) label rows alone give {_share(control[WHOLE]['own'])}.",
    ]


def title_of(model: str) -> str:
    """``label drop 0``."""
    return model.replace("-", " ")


def _table(model: str, summary: Mapping[str, Any]) -> Table:
    found = summary["models"][model]
    rows = [[combination(key), *_line(figures)] for key, figures in found.items()]
    rows.append(["real test images", *_line(summary["real"])])
    head = ["components, label row", "taken for own", "for the other", *FIGURES[2:]]
    return Table(f"{title_of(model)} ({MODELS[model]})", head, rows)


def _line(figures: Mapping[str, Any]) -> list[str]:
    shares = [_share(figures[name]) for name in FIGURES[:2]]
    return shares + ["-" if figures[name] is None else told(figures[name], ".2f") for name in FIGURES[2:]]


def _share(figure: Mapping[str, float]) -> str:
    return told(figure, ".0%")
