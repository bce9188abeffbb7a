"""Images in a numpy archive (``.npz``), the form in which ADM's reference batches are published.

| key | |
|---|---|
| ``images``, or ADM's ``arr_0`` | uint8 [N, H, W, C] or [N, H, W], 0 to 255; or float [N, C, H, W] within [-1, 1] |
| ``labels``, or ADM's ``arr_1`` | integers [N], -1: without class; or texts [N]; may be missing: one class |
| ``class_names`` | texts [C], what integer labels stand for; if missing, the integers themselves are names |

Bytes lie as image libraries have them, channels last; floats as models have them, channels first. Pickle is never
read, so arrays of Python objects are refused.

Shapes: N images, C channels or classes, H height, W width, S pixels a side.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from kindgene.data.arrays import ArrayDataset, in_memory
from kindgene.data.classless import tell_classless
from kindgene.data.dataset import Dataset
from kindgene.data.encoded import fits_memory
from kindgene.data.images import MODES, Pixels, check_size, crop_pixels
from kindgene.data.labels import check_known, named_labels
from kindgene.data.lazy import LazyDataset

_IMAGES = ("images", "arr_0")
_LABELS = ("labels", "arr_1")
_NAMES = "class_names"
# What numpy raises for a file that is no archive, or a damaged one.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelsDataset(LazyDataset):
    """Images held as bytes, cropped when drawn: a quarter of what floats take. `load_npz` makes it.

    pixels: uint8 [N, H, W, 1 or 3].
    """

    pixels: Pixels

    def read(self, index: int) -> Pixels:
        pixels = self.pixels[index]
        return crop_pixels(
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), self.size, self.channels
        )

    def where(self, kept: Tensor) -> Self:
        """The images where `kept` (bool [N]) is true, all classes kept."""
        return replace(self, labels=self.labels[kept], pixels=self.pixels[kept.numpy()])


def load_npz(
    path: str | Path,
    size: int | None = None,
    channels: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    flip: bool = False,
    min_side: int | None = None,
) -> Dataset:
    """The images of an archive, [N, channels, size, size] in [-1, 1]; `size` and `channels` None: as they are.

    Bytes of another size are reduced and centre-cropped as ADM does, and grey made RGB or RGB grey; floats are taken
    as they are or refused. They are held as floats where those take less than 1 GiB, else as bytes. `classes`: only
    these, in this order. `flip`: training mirrors every other one. `min_side`: smaller images are refused, all of them,
    since they are of one size; None: `size`; 1: they are enlarged.

    Raises ValueError, naming the file and the key, for a damaged file, missing keys, arrays of other types and shapes
    than above, images smaller than `min_side`, and labels without a name.
    """
    path = Path(path)
    found = _load(path, size, channels, flip, min_side)
    if classes is not None:
        check_known(classes, found.class_names, str(path))
        found = found.subset(classes)
    tell_classless(found.labels, found.class_names, str(path), "have no label (-1)")
    return found


def _load(path: Path, size: int | None, channels: int | None, flip: bool, min_side: int | None) -> Dataset:
    """All images of an archive."""
    arrays = _read(path)
    images = _first(arrays, _IMAGES)
    if images is None:
        raise ValueError(f"{path} holds no array that goes by the name 'images' (or ADM's 'arr_0')")
    if images.ndim == 0 or images.size == 0:
        raise ValueError(f"{path} holds no images: its array has the shape {images.shape}")
    labels, names = _labels(path, arrays, len(images))
    if images.dtype != np.uint8:
        if min_side is not None and images.ndim == 4:
            _refuse_small(path, images.shape[2:], min_side)
        try:
            return ArrayDataset(_floats(images, size, channels), labels, names, flip)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    pixels = _bytes(path, images)
    _refuse_small(path, pixels.shape[1:3], size if min_side is None else min_side)
    dataset = PixelsDataset(
        labels=labels,
        class_names=names,
        size=min(pixels.shape[1:3]) if size is None else size,
        channels=pixels.shape[3] if channels is None else channels,
        flip=flip,
        pixels=pixels,
    )
    check_size(dataset.size, dataset.channels)
    return in_memory(dataset) if fits_memory(dataset) else dataset


def _bytes(path: Path, images: Array) -> Pixels:
    """uint8 images as [N, H, W, 1 or 3]."""
    pixels = images[..., None] if images.ndim == 3 else images
    if pixels.ndim != 4 or pixels.shape[3] not in MODES:
        raise ValueError(
            f"the images of {path} are uint8 of shape {images.shape}; expected [N, H, W] or [N, H, W, 1 or 3]"
        )
    return pixels


def _refuse_small(path: Path, sides: tuple[int, ...], least: int | None) -> None:
    height, width = sides
    if least is not None and min(sides) < least:
        raise ValueError(
            f"the images of {path} are {width}x{height} pixels, smaller than {least}; "
            "ask for a smaller size, or allow enlarging (min_side=1)"
        )


def _floats(images: Array, size: int | None, channels: int | None) -> Tensor:
    """Floating-point images as float32 [N, C, H, W]."""
    if images.dtype.kind != "f" or images.ndim != 4:
        raise ValueError(
            f"the images are {images.dtype} of shape {images.shape}; "
            "expected uint8 [N, H, W, C], 0 to 255, or floats [N, C, H, W] within -1 and 1"
        )
    found = images.shape[1:]
    wanted = (channels or found[0], size or found[1], size or found[2])
    if found != wanted:
        raise ValueError(
            f"the images are floats of shape {found}, and {wanted} is wanted (C, H, W); floats are not resized: "
            "store bytes, uint8 [N, H, W, C]"
        )
    return torch.from_numpy(images.astype(np.float32))


def _labels(path: Path, arrays: Mapping[str, Array], count: int) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 [N] and class names."""
    names = arrays.get(_NAMES)
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise ValueError(f"{_NAMES} of {path} are {names.dtype} of shape {names.shape}; expected texts [C]")
    labels = _first(arrays, _LABELS)
    if labels is None:
        labels = np.zeros(count, dtype=np.int64)
        names = np.array([path.stem]) if names is None else names
    if labels.shape != (count,) or labels.dtype.kind not in "iuU":
        raise ValueError(
            f"the labels of {path} are {labels.dtype} of shape {labels.shape}; "
            f"expected integers or texts of shape ({count},), one for each image"
        )
    try:
        return named_labels(labels.tolist(), None if names is None else names.tolist())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Array]:
    """The arrays of an archive that go by a name of the table above."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            wanted = [key for key in archive.files if key in (*_IMAGES, *_LABELS, _NAMES)]
            arrays = {key: archive[key] for key in wanted}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is no array")
        return arrays
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read as an .npz archive of plain arrays ({error})") from error


def _first(arrays: Mapping[str, Array], keys: tuple[str, ...]) -> Array | None:
    return next((arrays[key] for key in keys if key in arrays), None)
