"""kindgene decompose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.models import load_run, read_run
from kindgene.cli.options import new_folder
from kindgene.cli.wording import number_of_classes

EXAMPLE = "kindgene decompose runs/digits --out my-pool"


def run(
    run: Annotated[Path, typer.Argument(help="Folder of a run of kindgene pretrain.")],
    out: Annotated[Path, typer.Option(help="New folder for the pool.")],
    weights: Annotated[str, typer.Option(help="ema, or raw: as the last step left them.")] = "ema",
) -> None:
    """Take a trained model apart into a pool: a learngene and a tailor a class."""
    from kindgene import Decomposable

    new_folder(out)
    facts = read_run(run)
    model, step = load_run(run, facts, weights)  # type: ignore[arg-type]  # checked there
    if not isinstance(model, Decomposable):
        raise ValueError(f"{run} trained a dense model; only a decomposable one can be taken apart")
    provenance = {"recipe": "kindgene decompose", "step": step, "config": facts["config"], "data": facts["data"]}
    pool = model.decompose(provenance=provenance)
    pool.save_pretrained(out)
    identity = pool.config.learngene_id[:16]
    typer.echo(
        f"{out}: learngene {identity}, {number_of_classes(len(pool.classes))}, {model.weights} weights of step {step}"
    )
