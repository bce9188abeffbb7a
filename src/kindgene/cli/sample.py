"""kindgene sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options
from kindgene.cli.models import find_device, load_any

EXAMPLE = "kindgene sample my-pool --guidance 1.5 --out samples.png"


def run(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="PNG file to write: a class a row.")],
    classes: options.Classes = None,
    per_class: options.PerClass = 8,
    guidance: options.Guidance = 1.0,
    steps: options.SamplingSteps = 50,
    scheduler: options.Scheduler = "ddim",
    clip: options.Clip = True,
    seed: options.Seed = 0,
    device: options.Device = None,
) -> None:
    """Draw images into a picture, a class a row."""
    import io

    import torch
    from PIL import Image

    from kindgene import sample
    from kindgene.files import write_bytes

    options.new_file(out, ".png")
    place = find_device(device)
    chosen = options.class_list(classes)
    loaded = load_any(model, chosen).model
    channels = int(loaded.config.in_channels)
    if channels not in (1, 3):
        raise ValueError(f"{model} makes {channels} channels; only pixel-space models (1 or 3) make a picture here")
    names = chosen or list(loaded.class_names)
    images = sample(
        loaded.to(place),
        [name for name in names for _ in range(per_class)],
        guidance=guidance,
        steps=steps,
        scheduler=scheduler,
        clip=1.0 if clip else None,
        generator=torch.Generator().manual_seed(seed),
    )
    height, width = images.shape[2:]
    grid = images.view(len(names), per_class, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array = pixels.reshape(len(names) * height, per_class * width, channels).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    write_bytes(out, buffer.getvalue())
    typer.echo(f"{out}: {len(images)} samples of {', '.join(names)}")
