"""kindgene demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def run(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    scale: Annotated[str, typer.Option(help="mini (minutes) or tiny (seconds, to try the machinery).")] = "mini",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the settings and stop.")] = False,
) -> None:
    """The whole method on real handwritten digits; leaves report.html and report.json.

    Example: kindgene demo --out runs/demo --seed 1
    """
    from kindgene.progress import RichProgress
    from kindgene.studies.demo import describe_demo, run_demo

    if dry_run:
        typer.echo(json.dumps(describe_demo(scale), indent=2))
        return
    report = run_demo(out, seed=seed, scale=scale, progress=RichProgress)
    rows = [report["base"], report["dense"], *report["recombined"].values(), *report["transfer"].values()]
    for row in rows:
        typer.echo(f"{row['title']:<40} recognised {row['recognised']:.3f}  {row['parameters']:>9,} parameters")
    typer.echo(f"report: {out / 'report.html'}")
