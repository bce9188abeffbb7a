"""kindgene import."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.options import Classes, at_least_one, class_list, new_folder
from kindgene.cli.wording import number_of_classes

EXAMPLE = "kindgene import DiT-XL.pt --learngene-rank 320 --out my-pool"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="A public-DiT file (.safetensors, .pt) or a diffusers folder.")],
    out: Annotated[Path, typer.Option(help="New folder for the pool.")],
    classes: Classes = None,
    class_names: Annotated[Path | None, typer.Option(help="A file instead: a class name a line.")] = None,
    learngene_rank: Annotated[str, typer.Option(help="full (exact), a number, or a share of the width.")] = "full",
    tailor_rank: Annotated[int, typer.Option(help="Rank of the tailors.", callback=at_least_one)] = 4,
    targets: Annotated[str, typer.Option(help="paper, or paper+adaln.")] = "paper+adaln",
    num_heads: Annotated[int | None, typer.Option(help="For a width that no published DiT has.")] = None,
    time_frequencies: Annotated[str | None, typer.Option(help="dit or diffusers.")] = None,
    schedule: Annotated[str | None, typer.Option(help="linear or cosine; the folder's, else linear.")] = None,
    prediction: Annotated[str | None, typer.Option(help="epsilon or v; the folder's, else epsilon.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
) -> None:
    """Make a pool of a dense checkpoint: the learngene holds its matrices, tailors start at zero.

    Classes name the label rows from the first on; the last row is the null class.
    """
    from rich.console import Console
    from rich.progress import Progress

    from kindgene.interop.from_dense import import_dense

    new_folder(out)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("decompose", total=None)
        made = import_dense(
            checkpoint,
            _names(classes, class_names),
            learngene_rank=_rank(learngene_rank),
            tailor_rank=tailor_rank,
            targets=targets,
            num_heads=num_heads,
            time_frequencies=time_frequencies,
            schedule=schedule,
            prediction=prediction,
            dtype=dtype,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    made.pool.save_pretrained(out)
    name, error = made.worst
    kept = "exact" if error == 0 else f"largest relative error {error:.2g} in {name}"
    typer.echo(f"{out}: {made.pool.config.backbone}, {number_of_classes(len(made.pool.classes))}, {kept}")


def _names(classes: str | None, file: Path | None) -> list[str] | None:
    if file is None:
        return class_list(classes)
    if classes is not None:
        raise ValueError("give --classes or --class-names, not both")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _rank(text: str) -> int | float | None:
    if text == "full":
        return None
    if re.fullmatch(r"[0-9]+", text):
        return int(text)
    if re.fullmatch(r"0?\.[0-9]+", text):
        return float(text)
    raise ValueError(f"--learngene-rank is full, a number of components, or a share like 0.25; got {text!r}")
