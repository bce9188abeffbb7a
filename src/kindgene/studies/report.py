"""The demo's report: one self-contained HTML file, from a template and figures."""

from __future__ import annotations

from pathlib import Path

import jinja2
import torch

from kindgene.evaluation.pareto import pareto_figure
from kindgene.files import write_bytes
from kindgene.studies import figures
from kindgene.studies.result import DemoResult, Measured
from kindgene.studies.settings import BASE, NOVEL

GOALS = {"base": 0.95, "recombined": 0.95, "transfer:kind": 0.90}


def write_report(path: Path, result: DemoResult) -> None:
    """Renders `result` to `path`."""
    loader = jinja2.PackageLoader("kindgene.studies", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    html = environment.get_template("demo.html.j2").render(
        result=result,
        facts=result.facts,
        rows=[(key, measured.row, _goal(key)) for key, measured in result.models.items()],
        base=result.models["base"].row,
        dense=result.models["dense"].row,
        kind=result.models["transfer:kind"].row,
        full=result.models["transfer:full_finetune"].row,
        half=result.models["recombined:4@half"].row,
        single=result.models["recombined:4"].row,
        figures=_figures(result),
    )
    write_bytes(path, html.encode())


def _goal(key: str) -> float | None:
    return GOALS.get(key, GOALS.get(key.partition(":")[0]))


def _figures(result: DemoResult) -> dict[str, str]:
    noises, columns = result.gate_images.shape[:2]
    curves = result.curves
    return {
        "gate": figures.image_grid(
            result.gate_images.flatten(0, 1),
            noises,
            columns,
            row_labels=[f"noise {i + 1}" for i in range(noises)],
            column_labels=["learngene", *(f"+ {name}" for name in BASE)],
        ),
        "real": _real_grid(result),
        "losses": figures.loss_curves(
            {
                "Pre-training on 0-5": {name: curves[name] for name in ("decomposable", "dense twin")},
                "Transfer to 6-9": {name: curves[name] for name in ("KIND (tailors only)", "full fine-tuning")},
            }
        ),
        "spectra": figures.spectra(result.pool),
        "pareto": figures.as_uri(pareto_figure(result.pareto)),
        "ranks": figures.kept_ranks(result.pool, result.half),
        "quality": figures.cost_and_quality([measured.row for measured in result.models.values()]),
        **{key: _sample_grid(measured) for key, measured in result.models.items()},
    }


def _sample_grid(measured: Measured) -> str:
    """Up to ten samples a class, a class a row (two rows for a single class)."""
    classes = list(dict.fromkeys(measured.asked))
    each = min(10, len(measured.asked) // len(classes))
    chosen = [i for name in classes for i in _places(measured.asked, name)[: each if len(classes) > 1 else 2 * each]]
    rows = len(chosen) // each
    labels = [measured.asked[chosen[row * each]] for row in range(rows)]
    return figures.image_grid(measured.images[chosen], rows, each, row_labels=labels)


def _places(asked: list[str], name: str) -> list[int]:
    return [index for index, other in enumerate(asked) if other == name]


def _real_grid(result: DemoResult) -> str:
    """Ten real digits of every class."""
    data = result.real
    names = [*BASE, *NOVEL]
    places = [torch.nonzero(data.labels == data.class_names.index(name)).flatten()[:10] for name in names]
    return figures.image_grid(data.batch(torch.cat(places)), len(names), 10, row_labels=names)
