"""The data of a pre-training: images or latents, with the classes asked for; latents are made where they are not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kindgene.cli import options, vae
from kindgene.cli.data import load_data

if TYPE_CHECKING:
    from torch import Tensor

    from kindgene.data.dataset import Dataset
    from kindgene.data.latents import LatentDataset
    from kindgene.recipes import DataSettings
    from kindgene.training.grid import Decode

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


def check_run(out: Path, resume: str | None, *, dry: bool) -> None:
    """Refuses, before any data are read, a folder where there is no run to go on with, or where none can begin.

    A dry run writes nothing, so every folder will do.
    """
    from kindgene.training.run import RunFolder

    if dry:
        return
    if not resume:
        new_run(out)
        return
    if out.is_dir() and {entry.name for entry in out.iterdir()} == {LATENTS}:
        raise ValueError(f"{out} holds latents that a run made before it began: leave out --resume to begin with them")
    RunFolder(out).check(resume)


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
    encoded(images, autoencoder, source.vae, out / LATENTS, skip_damaged=not source.strict)
    latents = load_latents(out / LATENTS, flip=settings.flip)
    return latents, latents.shape


def facts_of(source: Source, shape: tuple[int, int, int], out: Path) -> dict[str, Any]:
    """What run.json keeps of the data: what was said, the size of the images, and of latents the VAE's name."""
    from kindgene.data.latents import is_latents, load_latents

    settings = source.settings
    assert settings.data is not None
    size, name, there = shape[1], None, is_latents(Path(settings.data))
    if there or source.vae is not None:
        about = load_latents(Path(settings.data) if there else out / LATENTS).facts
        size, name = about["image_shape"][1], about["vae"]["name"]
    said = {key: value for key, value in asdict(settings).items() if key != "latents"}
    return {**said, "image_size": size, "vae": name}


def skipped_of(dataset: Dataset) -> list[dict[str, str]]:
    """What was left out of the data, a line each for the run's skipped.jsonl."""
    return [each.to_dict() for each in dataset.skipped]


def decoder(name: str) -> Decode:
    """What makes images of latents for a run's pictures, by the VAE of that name: in the first process, which draws.

    The VAE is where the model computes while it is needed, and on the CPU between two pictures.
    """
    from kindgene.data.autoencoder import decoded
    from kindgene.training.processes import is_main_process

    autoencoder = vae.load(name) if is_main_process() else None

    def decode(latents: Tensor) -> Tensor:
        assert autoencoder is not None, "another process draws"
        try:
            return decoded(autoencoder.to(latents.device), latents)
        finally:
            autoencoder.to("cpu")

    return decode


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
    """Latents that are there: of the size, the channels and the VAE that were asked for."""
    from kindgene.data.latents import load_latents

    _refuse_choices_of_images(source, folder)
    found = load_latents(folder, flip=source.settings.flip)
    _, height, width = found.facts["image_shape"]
    size, channels = source.settings.image_size, source.settings.channels
    if size is not None and (height, width) != (size, size):
        raise ValueError(f"the latents of {folder} are of images of {width}x{height} pixels, not {size} (--image-size)")
    if channels is not None and found.shape[0] != channels:
        raise ValueError(f"the latents of {folder} have {found.shape[0]} channels, not {channels} (--set channels)")
    if source.vae is not None:
        vae.check_same(vae.load(source.vae), found.facts["vae"], str(folder))
    return found


def _refuse_choices_of_images(source: Source, folder: Path) -> None:
    """Raises ValueError for options about the images behind latents, which were chosen when those were made.

    A min_side of 1, which some recipes have, leaves nothing out.
    """
    settings = source.settings
    said = {
        "--image-column": source.image_column is not None,
        "--label-column": source.label_column is not None,
        "--strict": source.strict,
        f"--set min_side={settings.min_side}": settings.min_side not in (None, 1),
        f"--set check={settings.check}": settings.check != "headers",
        f"--set split={settings.split}": settings.split is not None,
    }
    if any(said.values()):
        told = ", ".join(option for option, given in said.items() if given)
        raise ValueError(
            f"{folder} holds latents, whose images were chosen by kindgene encode: leave out {told}, or encode anew"
        )


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
