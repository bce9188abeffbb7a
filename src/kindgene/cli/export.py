"""kindgene export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.options import Classes, at_least_one, class_list, new_folder

EXAMPLE = "kindgene export my-pool --to onnx --classes 3,4 --out exported"


def run(
    model: Annotated[Path, typer.Argument(help="A pool, or a plain DiT (a merged or dense model).")],
    to: Annotated[str, typer.Option(help="dit, diffusers, peft, pipeline, torch-export or onnx.")],
    out: Annotated[Path, typer.Option(help="New folder for the export.")],
    classes: Classes = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float64, bfloat16 or float16.")] = None,
    form: Annotated[str | None, typer.Option(help="Programs: gated (if not given), merged or dense.")] = None,
    batch: Annotated[int | None, typer.Option(help="Programs: a fixed batch size.", callback=at_least_one)] = None,
    vae: Annotated[Path | None, typer.Option(help="Folder of an AutoencoderKL (diffusers, pipeline).")] = None,
    approximate: Annotated[bool, typer.Option("--approximate", help="Also if not exact (dit, diffusers).")] = False,
) -> None:
    """Write classes of a pool for other software, checked by running them there.

    dit, diffusers: one class, dense, without guidance. peft: the learngene as
    a base model, each tailor an adapter. pipeline: a KindPipeline.
    torch-export, onnx: a program that runs without kindgene.
    """
    from kindgene.interop.export import export, open_source

    new_folder(out)
    names = class_list(classes)
    given = {"dtype": dtype, "form": form, "batch": batch, "vae": vae, "approximate": approximate or None}
    made = export(open_source(model, names), to, out, names, **given)
    typer.echo(f"{out}: {to}, {made.parameters:,} parameters, classes {', '.join(made.classes)}")
    typer.echo(f"measured relative error {made.relative_error:.1e}")
    for reason in made.approximate:
        typer.echo(f"not exact: {reason}")
    for note in made.notes:
        typer.echo(note)
