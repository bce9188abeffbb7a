"""kindgene push."""

from __future__ import annotations

from typing import Annotated

import typer

from kindgene.cli import options

EXAMPLE = "kindgene push my-pool user/my-pool --private"


def run(
    pool: options.PoolFolder,
    repository: Annotated[str, typer.Argument(help="Hub repository: user/name. Made if it is not there.")],
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a repository that is made.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Push a kindgene pool",
) -> None:
    """Make a Hub repository's head what the pool is.

    The pool is verified first. The repository keeps its history, and in it every
    tailor that was ever pushed.
    """
    from kindgene import Pool

    opened = Pool.from_pretrained(pool, learngene_only=True)
    typer.echo(opened.push_to_hub(repository, private=private, commit_message=message))
