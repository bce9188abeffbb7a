"""kindgene plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options
from kindgene.cli.models import data_of, open_pool, plan_of

EXAMPLE = "kindgene plan my-pool --classes 4 --max-params 150k --out four.json"


def run(
    pool: options.ReadPool,
    classes: options.ChosenClasses,
    out: Annotated[Path | None, typer.Option(help="Write the plan to this JSON file.")] = None,
    form: options.Form = "gated",
    dtype: options.Dtype = None,
    max_params: options.MaxParams = None,
    max_macs: options.MaxMacs = None,
    max_bytes: options.MaxBytes = None,
    max_latency: options.MaxLatency = None,
    device: options.Device = None,
    calibrate: options.Calibrate = None,
    pareto: Annotated[
        Path | None, typer.Option(help="Draw quality against cost, whole range, to this PNG file.")
    ] = None,
    points: Annotated[int, typer.Option(help="Models on that curve.", callback=options.at_least_one)] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, of the curve too.")] = False,
) -> None:
    """Say which components a model for these classes would keep, and what it would cost.

    With --calibrate components are weighed by what they do to the model's output
    on these images, else by their singular values. With --pareto and --calibrate
    a fifth of the images is held out, and each model's loss measured on it.
    """
    from kindgene.evaluation.pareto import draw_pareto, measure_pareto
    from kindgene.progress import RichProgress

    names = options.class_list(classes) or []
    for path, suffix in ((out, ".json"), (pareto, ".png")):
        if path is not None:
            options.new_file(path, suffix)
    opened = open_pool(pool, names)
    found = plan_of(
        opened,
        names,
        form=form,
        dtype=dtype,
        max_params=max_params,
        max_macs=max_macs,
        max_bytes=max_bytes,
        max_latency=max_latency,
        device=device,
        calibrate=calibrate,
    )
    facts = found.to_json()
    if pareto is not None:
        data = held_out = None
        if calibrate is not None:
            data, held_out = data_of(opened, calibrate, names).split(0.2, seed=0)
        curve = measure_pareto(
            opened,
            names,
            form=form,  # type: ignore[arg-type]  # checked by then
            data=data,
            held_out=held_out,
            points=points,
            progress=RichProgress("curve"),
        )
        draw_pareto(curve, pareto)
        facts["pareto"] = [point.to_json() for point in curve]
    if out is not None:
        found.save(out)
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else str(found))
