"""kindgene merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options
from kindgene.cli.wording import number_of_classes

EXAMPLE = "kindgene merge my-pool their-pool --classes 8,9"


def run(
    pool: options.PoolFolder,
    other: Annotated[Path, typer.Argument(help="A pool (a folder or a Hub id) of the same learngene. Not changed.")],
    classes: options.Classes = None,
) -> None:
    """Add the tailors of another pool that has the same learngene."""
    from kindgene import Pool

    names = options.class_list(classes)
    opened = Pool.from_pretrained(pool, learngene_only=True)
    before = len(opened.classes)
    opened.merge(Pool.from_pretrained(str(other), classes=names), names)
    typer.echo(f"{pool}: {number_of_classes(len(opened.classes))}, {len(opened.classes) - before} of them new")
