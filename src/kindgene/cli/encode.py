"""kindgene encode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options, prepare
from kindgene.cli import vae as autoencoders
from kindgene.cli.wording import number_of_classes

EXAMPLE = "kindgene encode --data pets --vae vae --image-size 256 --out latents"


def run(
    data: options.Data,
    vae: Annotated[str, typer.Option(help="Folder or Hub id of a diffusers AutoencoderKL.")],
    image_size: Annotated[int, typer.Option(help="Pixels a side.", callback=options.at_least_one)],
    out: Annotated[Path, typer.Option(help="Folder for the latents.")],
    classes: options.Classes = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    strict: options.Strict = False,
    superclasses: Annotated[
        str | None, typer.Option(help="The data are ImageNet's; classes are its superclasses: base, novel or all.")
    ] = None,
    min_side: Annotated[
        int | None,
        typer.Option(help="Leave out smaller images; --image-size if not given.", callback=options.at_least_one),
    ] = None,
    dtype: Annotated[str, typer.Option(help="What latents are kept in: float16 or float32.")] = "float16",
    batch_size: Annotated[int, typer.Option(help="Images a time.", callback=options.at_least_one)] = 32,
    shard_size: Annotated[int, typer.Option(help="Images a file.", callback=options.at_least_one)] = 1024,
) -> None:
    """Encode images, and their mirror images, into latents to train on.

    Images that cannot be used, damaged ones too, are left out and listed in
    skipped.jsonl, unless --strict. After an interruption the same command
    goes on. Under accelerate launch or torchrun every process encodes a share.
    """
    from kindgene.data.latents import load_latents
    from kindgene.data.skipped import SKIPPED_FILE
    from kindgene.recipes import DataSettings
    from kindgene.training.processes import is_main_process

    settings = DataSettings(
        data=data,
        image_size=image_size,
        min_side=min_side,
        superclasses=superclasses,  # type: ignore[arg-type]  # checked where they are looked up
    )
    source = prepare.Source(settings, options.class_list(classes), strict, image_column, label_column)
    autoencoder = autoencoders.load(vae)
    images = prepare.images_of(source, int(autoencoder.config.in_channels))
    try:
        prepare.encoded(
            images,
            autoencoder,
            vae,
            out,
            skip_damaged=not strict,
            dtype=dtype,
            batch_size=batch_size,
            shard_size=shard_size,
        )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("while encoding") from error
    if is_main_process():
        made = load_latents(out)
        size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
        skipped = f", {len(made.skipped):,} skipped ({out / SKIPPED_FILE})" if made.skipped else ""
        typer.echo(
            f"{out}: {len(made):,} images of {number_of_classes(len(made.class_names))}{skipped} as {dtype} latents "
            f"{'x'.join(map(str, made.shape))}, {size / 1e6:,.1f} MB; "
            f"next: kindgene pretrain --recipe latents --data {out} --out RUN"
        )
