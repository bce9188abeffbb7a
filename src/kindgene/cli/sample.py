"""kindgene sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli.shared import class_list, load_any


def run(
    model: Annotated[Path, typer.Argument(help="A pool, a saved model or a run.")],
    out: Annotated[Path, typer.Option(help="PNG file to write: a class a row.")],
    classes: Annotated[str | None, typer.Option(help="Comma separated; all if not given.")] = None,
    per_class: int = 8,
    guidance: Annotated[float, typer.Option(help="1.5 for pools and gated models; 1 for merged ones.")] = 1.0,
    steps: int = 50,
    scheduler: Annotated[str, typer.Option(help="ddim, ddpm or dpm++.")] = "ddim",
    clip: Annotated[bool, typer.Option(help="Keep predicted images within -1 .. 1 (pixels, not latents).")] = True,
    seed: int = 0,
) -> None:
    """Draws images.

    Example: kindgene sample my-pool --classes 0,4 --guidance 1.5 --out samples.png
    """
    import io

    import torch
    from PIL import Image

    from kindgene import sample
    from kindgene.files import write_bytes

    if per_class < 1:
        raise ValueError(f"--per-class must be at least 1, got {per_class}")
    loaded = load_any(model, class_list(classes))
    names = class_list(classes) or list(loaded.class_names)
    images = sample(
        loaded,
        [name for name in names for _ in range(per_class)],
        guidance=guidance,
        steps=steps,
        scheduler=scheduler,
        clip=1.0 if clip else None,
        generator=torch.Generator().manual_seed(seed),
    )
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"samples have {channels} channels; only pixel-space models (1 or 3) make a picture here")
    grid = images.view(len(names), per_class, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array = pixels.reshape(len(names) * height, per_class * width, channels).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    write_bytes(out, buffer.getvalue())
    typer.echo(f"{out}: {count} samples of {', '.join(names)}")
