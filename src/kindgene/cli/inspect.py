"""kindgene inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def run(
    pool: Annotated[Path, typer.Argument(help="Folder of a pool.")],
    plot: Annotated[Path | None, typer.Option(help="Write the singular-value spectra to this PNG file.")] = None,
) -> None:
    """Says what a pool holds: classes, ranks, sizes, energy. Builds no model.

    Example: kindgene inspect my-pool --plot spectra.png
    """
    import base64

    from kindgene import Pool
    from kindgene.files import write_bytes
    from kindgene.studies.figures import spectra

    opened = Pool.from_pretrained(pool)
    squares = [value.double().square().sum() for key, value in opened.learngene.items() if key.endswith(".s")]
    shared = float(sum(squares))
    energy = {
        name: float(sum(t.components[f"{target}.s"].double().square().sum() for target in opened.config.ranks))
        for t in opened.tailors
        for name in t.classes
    }
    facts: dict[str, Any] = {
        "backbone": opened.config.backbone,
        "weights": opened.config.weights,
        "learngene_id": opened.config.learngene_id,
        "generation": opened.config.generation,
        "learngene_parameters": sum(value.numel() for value in opened.learngene.values()),
        "ranks": opened.config.ranks,
        "classes": {
            name: {
                "file": entry.file,
                "tailor_ranks": entry.tailor_ranks,
                "energy_share": energy[name] / (shared + energy[name]),
            }
            for name, entry in opened.config.classes.items()
        },
    }
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    if plot is not None:
        write_bytes(plot, base64.b64decode(spectra(opened).partition(",")[2]))
