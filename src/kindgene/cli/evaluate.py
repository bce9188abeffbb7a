"""kindgene evaluate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kindgene.cli import extractors, options
from kindgene.cli import measuring as parts
from kindgene.cli.models import find_device, load_any
from kindgene.cli.vae import recorded_name

if TYPE_CHECKING:
    from kindgene.evaluation.evaluate import Evaluated

EXAMPLE = "kindgene evaluate my-pool --classes 0,1 --guidance 1.5"

_METRICS = "fd, fid, sfid, is, precision, recall, recognised, loss; comma separated. recognised if not given."


def run(
    context: typer.Context,
    model: options.Model,
    data: Annotated[str | None, typer.Option(help=f"{options.DATA_HELP} digits if not given.")] = None,
    classes: options.Classes = None,
    per_class: Annotated[
        int | None, typer.Option(help="Samples of each class; 50 if not given.", callback=options.at_least_one)
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Samples of all classes together, in place of --per-class.", callback=options.at_least_one),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help=_METRICS)] = None,
    extractor: extractors.Name = None,
    inception_weights: extractors.InceptionWeights = None,
    dino: extractors.Dino = None,
    reference: Annotated[
        str | None,
        typer.Option(help="File of kindgene reference, ADM's .npz, or data; --data if not given."),
    ] = None,
    guidance: options.Guidance = 1.0,
    negative: options.Negative = None,
    steps: options.SamplingSteps = 50,
    scheduler: options.Scheduler = "ddim",
    clip: options.Clip = True,
    vae: options.Vae = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples, or images of the loss, a time.", callback=options.at_least_one)
    ] = 256,
    seed: options.Seed = 0,
    device: options.Device = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
    dry_run: options.DryRun = False,
) -> None:
    """Draw samples and measure them: recognised by a classifier, FID and more.

    The classifier learns all classes of --data from real images, a part of
    which is held out to measure its accuracy. Counts the model's cost too.
    With an --extractor or a --reference all that the extractor can measure is
    measured, unless --metrics says what. Under accelerate launch or torchrun
    every process draws a share.
    """
    from kindgene.data.autoencoder import weights_sha256
    from kindgene.evaluation.cost import measure_cost
    from kindgene.evaluation.drawing import Sampling, drawn, even_counts
    from kindgene.evaluation.evaluate import Evaluated, evaluate_samples
    from kindgene.evaluation.metrics import class_note
    from kindgene.files import write_json
    from kindgene.training.processes import launched

    if out is not None:
        options.new_file(out, ".json")
    if count is not None and per_class is not None:
        raise ValueError("give --per-class or --count, not both")
    place = find_device(device)
    chosen = options.class_list(classes)
    asked_for = parts.Asked(data, metrics, extractor, inception_weights, dino, reference)
    given = _given(context)
    asked_for.check_given(given)
    loaded = load_any(model, options.with_negative(chosen, negative))
    names = chosen or options.without_negative(loaded.model.class_names, negative)
    if count is None:
        per_class = 50 if per_class is None else per_class
        count = per_class * len(names)
    asked = even_counts(names, count)
    autoencoder: Any = parts.autoencoder_of(model, loaded.model, vae) if asked_for.draws else None
    clipped = 1.0 if clip and (autoencoder is None or "clip" in given) else None  # latents: only if asked for
    sampling = Sampling(
        guidance=guidance,
        negative=negative,
        steps=steps,
        scheduler=scheduler,
        clip=clipped,
        seed=seed,
        batch_size=batch_size,
    )
    shape = parts.image_shape(loaded.model, autoencoder)
    images = asked_for.images(shape, names)
    drawn_so: dict[str, Any] = {
        "samples_per_class": per_class,
        "samples": count,
        "scheduler": scheduler,
        "steps": steps,
        "guidance": guidance,
        **({} if negative is None else {"negative": negative}),
        "clip": clipped,
        **({} if vae is None else {"vae": recorded_name(vae), "vae_sha256": weights_sha256(autoencoder)}),
    }
    facts: dict[str, Any] = {
        "model": str(model),
        "weights": loaded.weights,
        "classes": names,
        "metrics": list(asked_for.wanted),
        **(drawn_so if asked_for.draws else {}),
        "seed": seed,
        "batch_size": batch_size,
        "device": str(place),
        **({"data": asked_for.data} if asked_for.uses_data else {}),
        **measure_cost(loaded.model).to_dict(),
        "versions": _versions(),
    }
    if dry_run:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return

    with launched("no") as processes:
        if device is None and processes.size > 1:
            place = processes.device
        if processes.size > 1:  # one trains a network that is not there yet, the others find it
            processes.first(lambda: asked_for.load_extractor(shape, place))
        eyes = asked_for.load_extractor(shape, place)
        judge, judged_by = asked_for.judge(images, eyes)
        real = asked_for.load_reference(images, eyes, names, shape)
        loaded.model.to(place)
        decode = parts.decoder(autoencoder, place)
        wanted = [name for name in asked_for.wanted if name != "loss"]
        found = Evaluated({}, None, [])
        if wanted:
            progress = parts.shown("sampling")
            blocks = drawn(loaded.model, asked, sampling, decode=decode, processes=processes, progress=progress)
            found = evaluate_samples(
                blocks, asked, wanted, extractor=eyes, reference=real, judge=judge, processes=processes
            )
        if not processes.main:
            return
    loss = asked_for.loss(loaded.model, names, seed, batch_size) if "loss" in asked_for.wanted else {}
    described: dict[str, Any] = {}
    if eyes is not None:
        described["extractor"] = eyes.to_dict()
    if real is not None:
        described["reference"] = parts.without_extractor(real.facts)
        found = replace(found, notes=found.notes + class_note(real.facts, names))
    result = {**_figures(found), **loss, **judged_by, **described, **facts}
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    if out is not None:
        write_json(out, result)


def _given(context: typer.Context) -> set[str]:
    """The parameters that stand on the command line, not the ones that keep their default."""
    source = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, found in source.items() if found is not None and found.name == "COMMANDLINE"}


def _figures(found: Evaluated) -> dict[str, Any]:
    """What was found, first in the result."""
    seen = {} if found.recognised is None else {"recognised": found.recognised.share}
    by_class = {} if found.recognised is None else {"per_class": found.recognised.per_class}
    notes: dict[str, Sequence[str]] = {"notes": found.notes} if found.notes else {}
    return {**found.figures, **seen, **by_class, **notes}


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    libraries = ("kindgene", "torch", "diffusers", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
