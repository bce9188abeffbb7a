"""kindgene recombine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options
from kindgene.cli.models import PROVENANCE_FILE, open_pool, plan_of

EXAMPLE = "kindgene recombine my-pool --classes 4 --max-params 150k --out four"


def run(
    pool: options.ReadPool,
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    classes: options.PlannedClasses = None,
    plan: Annotated[Path | None, typer.Option(help="A plan of kindgene plan, instead of all below.")] = None,
    form: options.Form = "gated",
    dtype: options.Dtype = None,
    max_params: options.MaxParams = None,
    max_macs: options.MaxMacs = None,
    max_bytes: options.MaxBytes = None,
    max_latency: options.MaxLatency = None,
    device: options.Device = None,
    calibrate: options.Calibrate = None,
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
    from kindgene.pool.plan import Plan

    options.new_folder(out)
    names = options.class_list(classes)
    if (names is None) == (plan is None):
        raise ValueError("say which classes to put together with --classes, or give a --plan: one of the two")
    if plan is not None:
        found = Plan.load(plan)
        _check_saved(found.dtype, dry_run)
        opened = open_pool(pool, found.classes)
        found.check(opened.config)
    else:
        _check_saved(dtype, dry_run)  # before any work, and whether or not torchao is there
        opened = open_pool(pool, names)
        found = plan_of(
            opened,
            names or [],
            form=form,
            dtype=dtype,
            max_params=max_params,
            max_macs=max_macs,
            max_bytes=max_bytes,
            max_latency=max_latency,
            device=device,
            calibrate=calibrate,
        )
    if dry_run:
        typer.echo(str(found))
        return
    if found.form == "gated":
        opened.subset(found).save_pretrained(out)
    else:
        with whole_folder(out) as folder:
            opened.recombine(plan=found).save_pretrained(folder)  # type: ignore[operator]
            record = {"kindgene": __version__, "weights": opened.config.weights, "plan": found.to_json()}
            write_json(folder / PROVENANCE_FILE, {**record, "pool": opened.config.provenance})
    typer.echo(f"{out}: {found.cost.parameters:,} parameters, classes {', '.join(found.classes)}")


def _check_saved(dtype: str | None, dry_run: bool) -> None:
    if dtype == "int8" and not dry_run:
        raise ValueError(
            "int8 models are not saved: save the float model, or the pool, and quantize when it is loaded: "
            'pool.recombine(..., form="merged", dtype="int8")'
        )
