"""kindgene recombine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options
from kindgene.cli.models import PROVENANCE_FILE, find_device, open_pool

EXAMPLE = "kindgene recombine my-pool --classes 4 --max-params 150k --out four"

_BUDGET = "Budget"


def run(
    pool: options.PoolFolder,
    classes: options.ChosenClasses,
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    form: Annotated[
        str, typer.Option(help="gated; or merged or dense: one class, no null class, a plain DiT.")
    ] = "gated",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; the pool's if not given.")] = None,
    max_params: Annotated[
        str | None, typer.Option(help="Parameters: 300k, 1.2M or a number.", rich_help_panel=_BUDGET)
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(help="Multiply-adds of a forward of one sample.", rich_help_panel=_BUDGET)
    ] = None,
    max_bytes: Annotated[str | None, typer.Option(help="Bytes of its numbers.", rich_help_panel=_BUDGET)] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Time of a forward, measured on --device.", rich_help_panel=_BUDGET)
    ] = None,
    device: options.Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be kept and what it costs, and stop.")
    ] = False,
) -> None:
    """Put a model for these classes together, within a budget.

    A gated model is saved as a pool of its own: guidance works, and it can be
    recombined again. A merged or dense one is saved as a plain DiT.
    """
    from kindgene._version import __version__
    from kindgene.files import write_json
    from kindgene.interop.folder import whole_folder

    options.new_folder(out)
    names = options.class_list(classes) or []
    opened = open_pool(pool, names)
    plan = opened.plan(
        names,
        max_parameters=options.size(max_params),
        max_macs=options.size(max_macs),
        max_bytes=options.size(max_bytes),
        max_latency_ms=max_latency_ms,
        device=str(find_device(device)),
        form=form,  # type: ignore[arg-type]  # checked there
        dtype=dtype,
    )
    if dry_run:
        typer.echo(str(plan))
        return
    if plan.form == "gated":
        opened.subset(plan).save_pretrained(out)
    else:
        with whole_folder(out) as folder:
            opened.recombine(plan=plan).save_pretrained(folder)  # type: ignore[operator]
            record = {"kindgene": __version__, "weights": opened.config.weights, "plan": plan.to_json()}
            write_json(folder / PROVENANCE_FILE, {**record, "pool": opened.config.provenance})
    typer.echo(f"{out}: {plan.cost.parameters:,} parameters, classes {', '.join(names)}")
