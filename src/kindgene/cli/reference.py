"""kindgene reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import extractors, options
from kindgene.cli.models import find_device, load_data
from kindgene.cli.wording import number_of_classes

EXAMPLE = "kindgene reference --data digits --classes 0,1 --out real.safetensors"


def run(
    data: options.Data,
    out: Annotated[Path, typer.Option(help="File .safetensors to write.")],
    classes: options.Classes = None,
    extractor: extractors.Name = None,
    inception_weights: extractors.InceptionWeights = None,
    dino: extractors.Dino = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side; the data's own if not given.", callback=options.at_least_one)
    ] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3; the data's own if not given, 3 of files.")] = None,
    features: Annotated[
        int,
        typer.Option(help="Images whose features are kept, for precision and recall.", min=0),
    ] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Images a time.", callback=options.at_least_one)] = 64,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    strict: options.Strict = False,
    device: options.Device = None,
) -> None:
    """Measure real images, for kindgene evaluate to compare samples with.

    Of --classes only if given: samples of some classes need the statistics of
    these. Images are brought to --image-size as for training.
    """
    from kindgene.evaluation.reference import make_reference, write_reference
    from kindgene.files import sha256
    from kindgene.progress import RichProgress

    options.new_file(out, ".safetensors")
    place = find_device(device)
    name = extractors.name_of(extractor, inception_weights, dino, data)
    images = load_data(
        data,
        options.class_list(classes),
        image_size,
        channels,
        strict=strict,
        image_column=image_column,
        label_column=label_column,
    )
    eyes = extractors.load(name, inception_weights, dino, images.shape[1], place)
    progress = RichProgress("measuring real images")
    made = make_reference(images, eyes, data=data, features=features, batch_size=batch_size, progress=progress)
    write_reference(out, made)
    if made.pooled.singular:
        told = f"; fewer than its {eyes.dimension:,} features need: only compare figures made with this very file"
    else:
        told = ""
    typer.echo(
        f"{out}: {len(images):,} images of {number_of_classes(len(images.class_names))}, {eyes.name} extractor, "
        f"sha256 {sha256(out)[:16]}{told}"
    )
