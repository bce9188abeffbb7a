"""kindgene inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kindgene.cli import options

if TYPE_CHECKING:
    from kindgene.evaluation.inspection import Inspection

EXAMPLE = "kindgene inspect my-pool --plot pictures"


def run(
    path: Annotated[
        Path, typer.Argument(help="A pool (a folder or a Hub id), a saved DiT, a run, or a checkpoint of one.")
    ],
    classes: Annotated[
        str | None, typer.Option(help="Measure their tailors; if not given all, or 32 evenly spaced ones.")
    ] = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="Sizes, classes and ranks alone; measure nothing.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="A line a matrix, not a line a kind of matrix.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw into this PNG file; or a file a picture, into this folder.")
    ] = None,
) -> None:
    """Say what is in a pool, a model or a run, and measure it.

    Sizes, classes, ranks; of every matrix the singular values, effective rank,
    drift from orthogonality, overlap between tailors, and energy of each part.
    Of a run also its history: loss, gradients, and the diagnostics it took.
    """
    from rich.console import Console

    from kindgene.evaluation.inspect_path import inspect_path
    from kindgene.evaluation.tables import as_text

    if layers and (sizes or as_json):
        raise ValueError("--layers is about the printed tables: --sizes has none, --json always has every layer")
    if plot is not None:
        if sizes:
            raise ValueError("--sizes measures nothing, so there is nothing to --plot; give one of the two")
        _check_plot(plot)
    found = inspect_path(path, options.class_list(classes), listing=sizes)
    if plot is not None:
        _draw(plot, found)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        Console(highlight=False).print(as_text(found, layers))


def _check_plot(plot: Path) -> None:
    """Refuses, before any work, what is neither a PNG file nor a folder that is there or can be made."""
    if plot.suffix and not plot.is_dir():
        options.new_file(plot, ".png")
    elif plot.exists() and not plot.is_dir():
        raise ValueError(f"{plot} is a file; name a PNG file or a folder")


def _draw(plot: Path, found: Inspection) -> None:
    """One file with everything, or a file a picture; of the averaged weights where a run has both."""
    from kindgene.evaluation.plots import page, pictures
    from kindgene.files import write_bytes

    structure = found.structures[0]
    title = f"{found.kind} {found.path}, weights: {structure.weights}"
    if plot.suffix and not plot.is_dir():
        write_bytes(plot, page(structure, title, found.history))
        return
    plot.mkdir(parents=True, exist_ok=True)
    for name, data in pictures(structure, title, found.history).items():
        write_bytes(plot / f"{name}.png", data)
