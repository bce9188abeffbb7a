"""kindgene decompose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.shared import load_run, new_folder


def run(
    run: Annotated[Path, typer.Argument(help="Folder of a run of kindgene pretrain.")],
    out: Annotated[Path, typer.Option(help="New folder for the pool.")],
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
) -> None:
    """Takes a trained model apart into a pool: a learngene and a tailor a class.

    Example: kindgene decompose runs/digits --out my-pool
    """
    from kindgene.core.decomposable import Decomposable

    new_folder(out)
    model = load_run(run, weights)
    if not isinstance(model, Decomposable):
        raise ValueError(f"{run} trained a dense model; only a decomposable one can be taken apart")
    pool = model.decompose(provenance={"recipe": "kindgene pretrain"})
    pool.save_pretrained(out)
    typer.echo(
        f"{out}: learngene {pool.config.learngene_id[:16]}, {len(pool.classes)} classes, {model.weights} weights"
    )
