"""kindgene study."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from kindgene.cli import options

EXAMPLE = "kindgene study elastic --scale mini --seeds 3"

STUDIES = ("pretrain", "novel", "shift", "agnostic", "elastic")


def run(
    name: Annotated[str, typer.Argument(help=f"Which study: {', '.join(STUDIES)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the studies.")] = Path("runs/studies"),
    scale: Annotated[
        str, typer.Option(help="tiny (seconds, to try the machinery), mini (two CPU cores), full (a GPU; not elastic).")
    ] = "mini",
    seeds: Annotated[int, typer.Option(help="How many seeds.", callback=options.at_least_one)] = 1,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
) -> None:
    """Run a study: train, measure, and write a table, a picture and JSON.

    Each training is a cell: interrupted, the same command goes on where it was,
    and what is finished is not computed again.
    """
    from kindgene.progress import RichProgress

    if name not in STUDIES:
        raise ValueError(f"no study {name!r}; there is {', '.join(STUDIES)}")
    settings, run_one, write, table = _study(name)
    if dry_run:
        chosen = {"study": name, "scale": scale, "seeds": seeds, **asdict(settings(scale))}
        typer.echo(json.dumps(chosen, indent=2))
        return
    settings(scale)  # refused before any work
    folder = out / name
    results = []
    for number in range(seed, seed + seeds):

        def show(cell: str, number: int = number) -> RichProgress:
            return RichProgress(f"seed {number}, {cell}")

        results.append(run_one(folder, seed=number, scale=scale, progress=show))
    summary = write(folder / scale, results)
    typer.echo(table(summary))
    typer.echo(f"tables, pictures and JSON: {folder / scale}")


def _study(name: str) -> tuple[Any, Any, Any, Any]:
    """A study's settings by scale, what runs one seed of it, what writes its results, and its table."""
    if name == "elastic":
        from kindgene.studies.elastic import elastic_settings, run_elastic
        from kindgene.studies.elastic_report import elastic_table, write_elastic

        return elastic_settings, run_elastic, write_elastic, elastic_table
    if name == "pretrain":
        from kindgene.studies.pretraining import pretrain_settings, run_pretrain
        from kindgene.studies.pretraining_report import pretrain_table, write_pretrain

        return pretrain_settings, run_pretrain, write_pretrain, pretrain_table
    if name in ("novel", "shift"):
        from kindgene.studies.transfers import run_transfers, transfer_settings
        from kindgene.studies.transfers_report import transfers_table, write_transfers

        return transfer_settings, partial(_of_transfers, run_transfers, name), write_transfers, transfers_table
    from kindgene.studies.agnostic import agnostic_settings, run_agnostic
    from kindgene.studies.agnostic_report import agnostic_table, write_agnostic

    return agnostic_settings, run_agnostic, write_agnostic, agnostic_table


def _of_transfers(run_transfers: Any, name: str, folder: Path, **choices: Any) -> Any:
    """One seed of the novel or the shift study, which share what was pre-trained."""
    return run_transfers(folder.parent / "transfers", name, **choices)
