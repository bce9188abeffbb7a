"""kindgene evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kindgene.cli import options
from kindgene.cli.models import find_device, load_any, load_data

if TYPE_CHECKING:
    from kindgene.data.arrays import in_memory
    from kindgene.evaluation.classifier import Classifier

EXAMPLE = "kindgene evaluate my-pool --classes 0,1 --guidance 1.5"


def run(
    model: options.Model,
    data: options.Data = "digits",
    classes: options.Classes = None,
    per_class: options.PerClass = 50,
    guidance: options.Guidance = 1.0,
    steps: options.SamplingSteps = 50,
    scheduler: options.Scheduler = "ddim",
    clip: options.Clip = True,
    seed: options.Seed = 0,
    device: options.Device = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    dry_run: options.DryRun = False,
) -> None:
    """Measure how many samples an independent classifier recognises.

    The classifier learns all classes of --data from real images, a part of
    which is held out to measure its accuracy. Counts the model's cost too.
    """
    import torch

    from kindgene import sample
    from kindgene.data.arrays import in_memory
    from kindgene.evaluation.classifier import recognised, train_classifier
    from kindgene.evaluation.cost import measure_cost
    from kindgene.files import write_json

    if out is not None:
        options.new_file(out, ".json")
    place = find_device(device)
    chosen = options.class_list(classes)
    loaded = load_any(model, chosen)
    names = chosen or list(loaded.model.class_names)
    settings = loaded.model.config
    images = load_data(data, None, int(settings.input_size), int(settings.in_channels))
    images.subset(names)  # classes that there are no real images of are refused here, before any work
    facts: dict[str, Any] = {
        "model": str(model),
        "weights": loaded.weights,
        "classes": names,
        "samples_per_class": per_class,
        "samples": per_class * len(names),
        "scheduler": scheduler,
        "steps": steps,
        "guidance": guidance,
        "clip": 1.0 if clip else None,
        "seed": seed,
        "device": str(place),
        "data": data,
        **measure_cost(loaded.model).to_dict(),
        "versions": _versions(),
    }
    if dry_run:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    classifier = train_classifier(*in_memory(images).split(0.2, seed=0), seed=0)
    asked = [name for name in names for _ in range(per_class)]
    drawn = sample(
        loaded.model.to(place),
        asked,
        guidance=guidance,
        steps=steps,
        scheduler=scheduler,
        clip=1.0 if clip else None,
        generator=torch.Generator().manual_seed(seed),
    )
    found = recognised(classifier, drawn, asked)
    result = {"recognised": found.share, "per_class": found.per_class, **_described(classifier), **facts}
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    if out is not None:
        write_json(out, result)


def _described(classifier: Classifier) -> dict[str, Any]:
    return {
        "classifier": "scikit-learn SVC (RBF) on pixels",
        "classifier_accuracy": classifier.accuracy,
        "classifier_classes": list(classifier.class_names),
        "classifier_trained_on": classifier.train_count,
        "classifier_held_out": classifier.held_out_count,
    }


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    libraries = ("kindgene", "torch", "diffusers", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
