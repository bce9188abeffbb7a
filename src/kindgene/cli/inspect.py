"""kindgene inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kindgene.cli.options import PoolFolder, new_file

if TYPE_CHECKING:
    from kindgene.pool.pool import Pool

EXAMPLE = "kindgene inspect my-pool --plot spectra.png"


def run(
    pool: PoolFolder,
    plot: Annotated[Path | None, typer.Option(help="Write the singular values to this PNG file.")] = None,
) -> None:
    """Say what a pool holds: classes, ranks, sizes, energy. Builds no model."""
    import base64

    from kindgene import Pool
    from kindgene.files import write_bytes

    if plot is not None:
        new_file(plot, ".png")
    opened = Pool.from_pretrained(pool)
    typer.echo(json.dumps(_facts(opened), indent=2, ensure_ascii=False))
    if plot is not None:
        from kindgene.studies.figures import spectra

        write_bytes(plot, base64.b64decode(spectra(opened).partition(",")[2]))


def _facts(pool: Pool) -> dict[str, Any]:
    """What config.json says, and what the tensors do; energy: the sum of squared singular values."""
    config = pool.config
    shared = sum(float(pool.learngene[f"{target}.s"].double().square().sum()) for target in config.ranks)
    classes = {}
    for tailor in pool.tailors:
        own = sum(float(tailor.components[f"{target}.s"].double().square().sum()) for target in config.ranks)
        numbers = sum(value.numel() for value in tailor.components.values())
        for name in tailor.classes:
            entry = config.classes[name]
            classes[name] = {
                "file": entry.file,
                "tailor_ranks": entry.tailor_ranks,
                "parameters": numbers + sum(row.numel() for row in tailor.row_of(name).values()),
                "energy_share": own / (shared + own) if shared + own else 0.0,
            }
    return {
        "backbone": config.backbone,
        "weights": config.weights,
        "learngene_id": config.learngene_id,
        "generation": config.generation,
        "learngene_parameters": sum(value.numel() for value in pool.learngene.values()),
        "ranks": config.ranks,
        "classes": {name: classes[name] for name in config.classes},
        "provenance": config.provenance,
    }
