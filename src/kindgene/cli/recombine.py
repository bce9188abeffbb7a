"""kindgene recombine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.shared import class_list, new_folder, size


def run(
    pool: Annotated[Path, typer.Argument(help="Folder of a pool.")],
    classes: Annotated[str, typer.Option(help="Comma separated.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    max_params: Annotated[str | None, typer.Option(help="Budget: 300k, 1.2M or a number.")] = None,
    form: Annotated[str, typer.Option(help="gated (a pool of just these pieces) or merged (a plain DiT).")] = "gated",
) -> None:
    """Puts a model for these classes together, within a budget.

    Gated models are saved as a pool of their own (canonical again; guidance works); merged ones as a plain DiT.

    Example: kindgene recombine my-pool --classes 4 --max-params 150k --out four
    """
    from kindgene import Decomposable, Pool

    new_folder(out)
    names = class_list(classes) or []
    opened = Pool.from_pretrained(pool, classes=names)
    model = opened.recombine(names, max_parameters=size(max_params), form=form)  # type: ignore[arg-type]
    if isinstance(model, Decomposable):
        model.decompose(provenance={"recombined from": opened.config.learngene_id}).save_pretrained(out)
    else:
        model.save_pretrained(out)  # type: ignore[operator]
    typer.echo(f"{out}: {sum(value.numel() for value in model.parameters()):,} parameters, classes {', '.join(names)}")
