"""kindgene evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kindgene.cli.shared import class_list, load_any, load_data


def run(
    model: Annotated[Path, typer.Argument(help="A pool, a saved model or a run.")],
    data: Annotated[str, typer.Option(help="Real images for the classifier: digits or a folder.")] = "digits",
    classes: Annotated[str | None, typer.Option(help="Comma separated; all of the model if not given.")] = None,
    per_class: int = 50,
    guidance: float = 1.0,
    steps: int = 50,
    scheduler: str = "ddim",
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the settings and stop.")] = False,
) -> None:
    """Samples, and measures how many samples an independent classifier recognises; counts what the model costs.

    Example: kindgene evaluate my-pool --data digits --classes 0,1 --guidance 1.5
    """
    import torch

    from kindgene import sample
    from kindgene.evaluation.classifier import recognised, train_classifier
    from kindgene.evaluation.cost import measure_cost
    from kindgene.files import write_json

    loaded = load_any(model, class_list(classes))
    names = class_list(classes) or list(loaded.class_names)
    cost = measure_cost(loaded).to_dict()
    result: dict[str, Any] = {
        "model": str(model),
        "classes": names,
        "samples": per_class * len(names),
        "guidance": guidance,
        "steps": steps,
        "scheduler": scheduler,
        "clip": 1.0,
        "seed": seed,
        **cost,
    }
    if not dry_run:
        images = load_data(data, None, int(loaded.config.input_size), int(loaded.config.in_channels))
        classifier = train_classifier(*images.split(0.2, seed=0), seed=0)
        asked = [name for name in names for _ in range(per_class)]
        generator = torch.Generator().manual_seed(seed)
        drawn = sample(
            loaded, asked, guidance=guidance, steps=steps, scheduler=scheduler, clip=1.0, generator=generator
        )
        found = recognised(classifier, drawn, asked)
        result |= {
            "recognised": found.share,
            "per_class": found.per_class,
            "extractor": "scikit-learn SVC (RBF) on pixels",
            "classifier_accuracy": classifier.accuracy,
        }
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    if out is not None:
        write_json(out, result)
