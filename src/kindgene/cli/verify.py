"""kindgene verify."""

from __future__ import annotations

import typer

from kindgene.cli import options
from kindgene.cli.wording import number_of_classes

EXAMPLE = "kindgene verify my-pool"


def run(pool: options.PoolFolder) -> None:
    """Read every file of a pool and check it: hashes, names, shapes, finite numbers.

    Exits with 2 and names the first file that is wrong.
    """
    from kindgene import Pool

    opened = Pool.from_pretrained(pool, learngene_only=True)
    opened.verify()
    typer.echo(
        f"{pool}: whole; learngene {opened.config.learngene_id[:16]} and {number_of_classes(len(opened.classes))}"
    )
