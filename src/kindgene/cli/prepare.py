"""The data of a pre-training: images or latents, with the classes asked for; latents are made where they are not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kindgene.cli import options, vae
from kindgene.cli.data import load_data

if TYPE_CHECKING:
    from kindgene.data.dataset import Dataset
    from kindgene.data.latents import LatentDataset
    from kindgene.recipes import DataSettings

LATENTS = "latents"
"""The folder in a run's folder where latents are that the run made."""

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Source:
    """What the command line says of the data."""

    settings: DataSettings
    classes: Sequence[str] | None = None
    strict: bool = False
    image_column: str | None = None
    label_column: str | None = None
    vae: str | None = None


def new_run(out: Path) -> None:
    """Refuses a folder that holds something, but for latents: a run may have been stopped while it made them."""
    if not (out.is_dir() and {entry.name for entry in out.iterdir()} == {LATENTS}):
        options.new_run(out)


def dataset_of(source: Source, out: Path, *, dry: bool) -> tuple[Dataset, tuple[int, int, int]]:
    """The data to train on, and their shape (C, H, W).

    Latents are made in `out`, or, of a run that goes on, checked there; of `dry` the images come instead of them, with
    the latents' shape. Raises ValueError, in one line, for what does not fit together.
    """
    from kindgene.data.autoencoder import latent_shape
    from kindgene.data.latents import is_latents, load_latents

    settings = source.settings
    if settings.data is None:
        raise ValueError("this recipe has no data of its own; say what to train on with --data")
    if is_latents(Path(settings.data)):
        found = _of_classes(_latents(source, Path(settings.data)), source, settings.data)
        return found, found.shape
    if source.vae is None:
        if settings.latents:
            raise ValueError(
                "this recipe trains on latents: name the VAE that makes them with --vae, a folder or a Hub id, or give "
                "--data a folder that kindgene encode wrote"
            )
        images = images_of(source)
        return images, images.shape
    autoencoder = vae.load(source.vae)
    images = images_of(source, int(autoencoder.config.in_channels))
    if dry:
        return images, latent_shape(autoencoder, images.shape)
    encoded(images, autoencoder, source.vae, out / LATENTS)
    latents = load_latents(out / LATENTS, flip=settings.flip)
    return latents, latents.shape


def images_of(source: Source, channels: int | None = None) -> Dataset:
    """The images, of ImageNet's superclasses where those are asked for."""
    settings = source.settings
    assert settings.data is not None
    data, classes = settings.data, source.classes
    if settings.superclasses is not None:
        from kindgene.data.imagenet import find_folders, needed_folders

        data, classes = str(find_folders(data, settings.superclasses)), needed_folders(settings.superclasses)
    found = load_data(
        data,
        classes,
        settings.image_size,
        settings.channels or channels,
        strict=source.strict,
        flip=settings.flip,
        image_column=source.image_column,
        label_column=source.label_column,
        split=settings.split,
        min_side=settings.min_side,
        check=settings.check,
    )
    return found if settings.superclasses is None else _of_classes(found, source, data)


def encoded(images: Dataset, autoencoder: Any, name: str, out: Path, **choices: Any) -> None:
    """Encodes images in all processes there are; `choices` are those of `kindgene.data.encode.encode`."""
    from kindgene.data.encode import encode
    from kindgene.progress import RichProgress
    from kindgene.training.processes import launched

    with launched("no") as processes:
        encode(
            images,
            autoencoder.to(processes.device),
            out,
            vae_name=vae.recorded_name(name),
            preprocessing="upright (EXIF), reduced and centre-cropped as ADM (Dhariwal and Nichol 2021), -1 .. 1",
            processes=processes,
            progress=RichProgress("encode"),
            **choices,
        )


def _latents(source: Source, folder: Path) -> LatentDataset:
    """Latents that are there: of the size and the VAE that were asked for."""
    from kindgene.data.latents import load_latents

    found = load_latents(folder, flip=source.settings.flip)
    _, height, width = found.facts["image_shape"]
    size = source.settings.image_size
    if size is not None and (height, width) != (size, size):
        raise ValueError(f"the latents of {folder} are of images of {width}x{height} pixels, not {size} (--image-size)")
    if source.vae is not None:
        vae.check_same(vae.load(source.vae), found.facts["vae"], str(folder))
    return found


def _of_classes(dataset: Dataset, source: Source, origin: str) -> Dataset:
    """Superclasses in place of ImageNet's classes, and of them the classes asked for."""
    from kindgene.data.imagenet import merge_classes
    from kindgene.data.labels import check_known

    split = source.settings.superclasses
    if split is not None and any(map(_WNID.fullmatch, dataset.class_names)):
        dataset = merge_classes(dataset, split)
    if source.classes is None or tuple(source.classes) == dataset.class_names:
        return dataset
    check_known(source.classes, dataset.class_names, origin)
    return dataset.subset(source.classes)
