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
        typer.echo(json.dumps({"out": str(out), "seed": seed, **describe_demo(scale), **_costs(scale)}, indent=2))
        return
    report = run_demo(out, seed=seed, scale=scale, progress=RichProgress)
    rows = [report["base"], report["dense"], *report["recombined"].values(), *report["transfer"].values()]
    for row in rows:
        typer.echo(f"{row['title']:<40} recognised {row['recognised']:.3f}  {row['parameters']:>9,} parameters")
    typer.echo(f"report: {out / 'report.html'}")


def _costs(scale: str) -> dict[str, dict[str, int]]:
    """What the two models that are pre-trained cost."""
    from kindgene import DiT, KindConfig, make_decomposable
    from kindgene.evaluation.cost import measure_cost
    from kindgene.studies.settings import BASE, demo_settings

    settings = demo_settings(scale)
    dense = DiT.from_preset(settings.preset, num_classes=len(BASE))
    dense_cost = measure_cost(dense).to_dict()
    kind = KindConfig(
        num_classes=len(BASE),
        learngene_rank=settings.learngene_rank,
        tailor_rank=settings.tailor_rank,
        targets=settings.targets,
    )
    return {"base": measure_cost(make_decomposable(dense, kind)).to_dict(), "dense": dense_cost}
