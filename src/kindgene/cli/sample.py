"""kindgene sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kindgene.cli import options
from kindgene.cli import vae as autoencoders
from kindgene.cli.models import find_device, load_any

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = "kindgene sample my-pool --guidance 1.5 --out samples.png"


def run(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="PNG file to write: a class a row.")],
    classes: options.Classes = None,
    per_class: options.PerClass = 8,
    guidance: options.Guidance = 1.0,
    negative: options.Negative = None,
    steps: options.SamplingSteps = 50,
    scheduler: options.Scheduler = "ddim",
    clip: Annotated[
        bool | None,
        typer.Option("--clip/--no-clip", help="Keep predictions within -1 and 1; of pixels it does if not given."),
    ] = None,
    vae: options.Vae = None,
    seed: options.Seed = 0,
    device: options.Device = None,
) -> None:
    """Draw images into a picture, a class a row.

    Samples of a model of latents are decoded by its --vae.
    """
    import torch

    from kindgene import sample
    from kindgene.data.autoencoder import decoded
    from kindgene.files import write_bytes

    options.new_file(out, ".png")
    place = find_device(device)
    chosen = options.class_list(classes)
    loaded = load_any(model, options.with_negative(chosen, negative)).model
    autoencoder = autoencoders.of_model(model, int(loaded.config.in_channels), vae)
    clip = autoencoder is None if clip is None else clip
    names = chosen or options.without_negative(loaded.class_names, negative)
    images = sample(
        loaded.to(place),
        [name for name in names for _ in range(per_class)],
        guidance=guidance,
        negative=negative,
        steps=steps,
        scheduler=scheduler,
        clip=1.0 if clip else None,
        generator=torch.Generator().manual_seed(seed),
    )
    if autoencoder is not None:
        images = decoded(autoencoder.to(place), images)
    write_bytes(out, _picture(images, len(names)))
    typer.echo(f"{out}: {len(images)} samples of {', '.join(names)}")


def _picture(images: Tensor, rows: int) -> bytes:
    """Images [N, C, H, W] in -1 .. 1 as a PNG of so many rows."""
    import io

    import torch
    from PIL import Image

    count, channels, height, width = images.shape
    grid = images.view(rows, count // rows, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array = pixels.reshape(rows * height, count // rows * width, channels).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()
