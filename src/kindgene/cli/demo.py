"""kindgene demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.options import DryRun, Seed

EXAMPLE = "kindgene demo --out runs/demo --seed 1"


def run(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    seed: Seed = 0,
    scale: Annotated[str, typer.Option(help="mini (minutes) or tiny (seconds, to try the machinery).")] = "mini",
    dry_run: DryRun = False,
) -> None:
    """Run the whole method on real handwritten digits, and write a report.

    Leaves report.html and report.json in --out. Interrupted, the same
    command goes on where it was; after it finished, it starts anew.
    """
    from kindgene.progress import RichProgress
    from kindgene.studies.demo import describe_demo, run_demo

    if dry_run:
        typer.echo(json.dumps({"out": str(out), "seed": seed, **describe_demo(scale)}, indent=2))
        return
    report = run_demo(out, seed=seed, scale=scale, progress=RichProgress)
    rows = [report["base"], report["dense"], *report["recombined"].values(), *report["transfer"].values()]
    for row in rows:
        typer.echo(f"{row['title']:<40} recognised {row['recognised']:.3f}  {row['parameters']:>9,} parameters")
    typer.echo(f"report: {out / 'report.html'}")
