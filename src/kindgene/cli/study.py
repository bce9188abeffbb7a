"""kindgene study."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options

EXAMPLE = "kindgene study elastic --scale mini --seeds 3"

STUDIES = ("elastic",)


def run(
    name: Annotated[str, typer.Argument(help=f"Which study: {', '.join(STUDIES)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the studies.")] = Path("runs/studies"),
    scale: Annotated[str, typer.Option(help="mini (two CPU cores) or tiny (seconds, to try the machinery).")] = "mini",
    seeds: Annotated[int, typer.Option(help="How many seeds.", callback=options.at_least_one)] = 1,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
) -> None:
    """Run a study: train, measure, and write a table, a picture and JSON.

    Each training is a cell: interrupted, the same command goes on where it was,
    and what is finished is not computed again.
    """
    from kindgene.progress import RichProgress
    from kindgene.studies.elastic import elastic_settings, run_elastic
    from kindgene.studies.elastic_report import elastic_table, write_elastic

    if name not in STUDIES:
        raise ValueError(f"no study {name!r}; there is {', '.join(STUDIES)}")
    settings = elastic_settings(scale)
    if dry_run:
        typer.echo(json.dumps({"study": name, "scale": scale, "seeds": seeds, **asdict(settings)}, indent=2))
        return
    folder = out / name
    results = []
    for number in range(seed, seed + seeds):

        def show(cell: str, number: int = number) -> RichProgress:
            return RichProgress(f"seed {number}, {cell}")

        results.append(run_elastic(folder, seed=number, scale=scale, progress=show))
    summary = write_elastic(folder / scale, results)
    typer.echo(elastic_table(summary))
    typer.echo(f"table, picture and JSON: {folder / scale}")
