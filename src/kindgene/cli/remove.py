"""kindgene remove."""

from __future__ import annotations

import typer

from kindgene.cli import options
from kindgene.cli.wording import number_of_classes

EXAMPLE = "kindgene remove my-pool --classes 4"


def run(pool: options.PoolFolder, classes: options.ChosenClasses) -> None:
    """Remove classes: their tailors' files are deleted.

    No byte of them stays in the folder. The learngene was trained on these classes
    too and does not change: this is not unlearning.
    """
    from kindgene import Pool

    opened = Pool.from_pretrained(pool, learngene_only=True)
    opened.remove(options.class_list(classes) or [])
    typer.echo(f"{pool}: {number_of_classes(len(opened.classes))} left")
