"""What ``--data`` may name: an embedded data set, a folder of images, a cache of latents, an archive, a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kindgene.data.dataset import Dataset
    from kindgene.data.encoded import Check

_HF = "hf:"


def load_data(
    data: str,
    classes: Sequence[str] | None,
    image_size: int | None,
    channels: int | None,
    *,
    strict: bool = False,
    flip: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    min_side: int | None = None,
    check: Check = "headers",
) -> Dataset:
    """The images, or latents, that `data` names; `classes` in their order.

    | `data` | |
    |---|---|
    | ``digits``, ``glyphs``, ... | comes with the package: `kindgene.data.named` |
    | a folder that ``kindgene encode`` wrote | latents: `kindgene.data.latents` |
    | a folder that ``datasets`` saved, or with Parquet files; ``hf:FOLDER`` | `kindgene.data.huggingface` |
    | ``user/name`` that is no path here, ``hf:NAME`` | a data set on the Hugging Face Hub, by the same |
    | any other folder | images, a folder a class: `kindgene.data.folder` |
    | a file ``.npz`` | `kindgene.data.npz` |

    Files that cannot be used are skipped with a warning; of `strict` they are an error. `min_side` and `check` say what
    that means (`kindgene.data.folder.load_folder`). Raises ValueError, in one line, for what is not there, and for
    options that do not go with the kind of data: only folders and tables have images that are looked at one by one.
    A `min_side` of 1, which some recipes have, leaves nothing out and goes with all.
    """
    from kindgene.data.named import NAMES, load_named

    path = Path(data.removeprefix(_HF))
    table = data not in NAMES and _is_table(data, path)
    archive = data not in NAMES and not table and path.suffix.lower() == ".npz" and not path.is_dir()
    if not table:
        _refuse_columns(data, path, image_column, label_column, split)
    if archive or data in NAMES or (not table and _is_latents(path)):
        _refuse_looking(data, strict, check)
        if not archive and min_side not in (None, 1):
            raise ValueError(f"min_side is for images in files, and those of {data} all have one size; leave it out")
    found: Dataset
    if data in NAMES:
        if channels not in (None, 1):
            raise ValueError(f"{data} is grey, but images of {channels} channels are needed; give --data a folder")
        found = load_named(data, image_size, classes)
        return dataclasses.replace(found, flip=flip)
    if archive:
        from kindgene.data.npz import load_npz

        return load_npz(path, image_size, channels, classes=classes, flip=flip, min_side=min_side)
    if not table and _is_latents(path):
        return _of_classes(_latents(path, image_size, channels, flip), classes, data)
    if not table and not path.is_dir():
        raise ValueError(
            f"{data} is neither a folder nor one of {', '.join(NAMES)}; nor is it an .npz file, "
            "or a data set on the Hub, which is written user/name or hf:NAME"
        )
    if image_size is None:
        raise ValueError(f"give the --image-size to bring the images of {data} to")

    from kindgene.progress import RichProgress

    progress = RichProgress(f"looking through {data}")
    if not table:
        from kindgene.data.folder import load_folder

        return load_folder(
            path,
            image_size,
            channels or 3,
            classes=classes,
            strict=strict,
            flip=flip,
            min_side=min_side,
            check=check,
            progress=progress,
        )
    from kindgene.data.huggingface import load_hf

    return load_hf(
        data.removeprefix(_HF),
        image_size,
        channels or 3,
        split=split or "train",
        image_column=image_column or "image",
        label_column="label" if label_column is None else label_column or None,
        classes=classes,
        strict=strict,
        flip=flip,
        min_side=min_side,
        check=check,
        progress=progress,
    )


def _is_table(data: str, path: Path) -> bool:
    """Whether `datasets` reads it: asked for, or saved by it, or Parquet files, or an id on the Hub."""
    if data.startswith(_HF):
        return True
    if not path.exists():
        from kindgene.pool.hub import is_repository

        return is_repository(data)
    if not path.is_dir() or _is_latents(path):
        return False
    from kindgene.data.huggingface import is_saved

    return is_saved(path) or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def _refuse_columns(
    data: str, path: Path, image_column: str | None, label_column: str | None, split: str | None
) -> None:
    """Raises ValueError for options of tables."""
    for option, value in (("--image-column", image_column), ("--label-column", label_column), ("split", split)):
        if value is not None:
            hint = f"; hf:{data} has it read as one" if path.is_dir() else ""
            raise ValueError(f"{option} is for Hugging Face data sets, and {data} is none{hint}")


def _refuse_looking(data: str, strict: bool, check: Check) -> None:
    """Raises ValueError for options of images that can be skipped one by one."""
    for option, given in (("--strict", strict), (f"check={check}", check != "headers")):
        if given:
            raise ValueError(
                f"{option} is for folders and Hugging Face data sets, of which single images can be skipped; "
                f"{data} is taken as a whole or refused: leave it out"
            )


def _is_latents(path: Path) -> bool:
    from kindgene.data.latents import is_latents

    return is_latents(path)


def _latents(path: Path, image_size: int | None, channels: int | None, flip: bool) -> Dataset:
    """A cache of latents, which has a size of its own."""
    from kindgene.data.latents import load_latents

    found = load_latents(path, flip=flip)
    has_channels, height, width = found.shape
    wanted = (channels or has_channels, image_size or height, image_size or width)
    if found.shape != wanted:
        raise ValueError(f"the latents of {path} have the shape {found.shape}, and {wanted} is needed (C, H, W)")
    return found


def _of_classes(dataset: Dataset, classes: Sequence[str] | None, data: str) -> Dataset:
    from kindgene.data.labels import check_known

    if classes is None:
        return dataset
    check_known(classes, dataset.class_names, data)
    return dataset.subset(classes)
