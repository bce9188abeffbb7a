"""One image: what fits, how it is cropped, and its pixels.

| kind | |
|---|---|
| grey, RGB, two levels, palette | used; a palette only names colours, so nothing is lost |
| grey or RGB with an alpha channel that is opaque throughout | used, without the channel |
| partly transparent | unfit: what shows depends on a background that is not there |
| deeper than 8 bits | unfit: which part of the range is meant is the owner's choice |
| CMYK and other colour spaces | unfit: without its profile the colours would be a guess |
| animated | unfit: which frame is meant is not known (of a camera's file of several views it is the first) |
| short side below `min_side` | unfit: enlarging invents what is not there; a lower `min_side` allows it |
| damaged, cut off, no JPEG, PNG or WebP | unfit |

The suffix of a file says nothing here: what it is shows in its first bytes.

Shapes: C channels, S pixels a side.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

MODES = {1: "L", 3: "RGB"}
"""Pillow's name of images of 1 and of 3 channels: those that can be made."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_MODES_TAKEN = ("1", "L", "LA", "P", "RGB", "RGBA")
# What Pillow raises for a damaged file depends on where the damage lies.
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Faults of one file. Others (too many open files, a disk that fails) are no reason to go on without it.
_ABSENT = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP)

Pixels = npt.NDArray[np.uint8]
Source = Path | IO[bytes]


class UnfitImageError(ValueError):
    """An image that cannot be used.

    kind: a few words to count by; the message is the rest of a sentence that begins with the image's name; advice:
    what would make it fit; absent: nothing can be said of the image, since its file is not there or is closed to us.
    """

    def __init__(self, kind: str, reason: str, advice: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.kind, self.advice, self.absent = kind, advice, absent


def check_size(size: int, channels: int) -> None:
    """Raises ValueError for a size and channels that images cannot be brought to."""
    if size < 1:
        raise ValueError(f"the image size is {size}; it must be at least 1 pixel")
    if channels not in MODES:
        raise ValueError(f"images of {channels} channels cannot be made; ask for 1 (grey) or 3 (RGB)")


def check_header(source: Source, min_side: int) -> None:
    """Raises UnfitImageError for what shows without decoding; damage further in does not.

    Only where the header leaves open whether an image is partly transparent is it decoded.
    """
    with _damage_named(), Image.open(source, formats=_FORMATS) as image:
        _refuse_unsuitable(image, min_side)
        if image.has_transparency_data:
            _opaque(image)


def read_pixels(source: Source, size: int, channels: int, min_side: int) -> Pixels:
    """Decodes an image: uint8 [C, S, S] with S = `size`, C = `channels`, 1 (grey) or 3 (RGB).

    It is turned upright as its EXIF data say, then see `crop_pixels`. Raises UnfitImageError, for damage too.
    """
    with _damage_named(), Image.open(source, formats=_FORMATS) as image:
        _refuse_unsuitable(image, min_side)  # before loading, which hides how deep the colours were
        upright = _opaque(ImageOps.exif_transpose(image))
    return crop_pixels(upright, size, channels)


def crop_pixels(image: Image.Image, size: int, channels: int) -> Pixels:
    """An image as uint8 [C, S, S]: made grey (ITU-R 601 luma) or RGB, then `centre_crop`."""
    pixels = np.asarray(centre_crop(image.convert(MODES[channels]), size))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Reduce to a short side of `size`, then cut the middle square, as ADM (Dhariwal and Nichol 2021).

    Halving with a box filter while the short side is at least twice `size`, then one bicubic step, keeps a
    strong reduction free of aliasing. FID compares with figures published for this preprocessing only if it
    is the same. A smaller image is enlarged by the bicubic step.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@contextmanager
def _damage_named() -> Iterator[None]:
    """Pillow's many errors as one UnfitImageError."""
    try:
        yield
    except UnfitImageError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None and error.errno not in _ABSENT:
            raise
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({said})"
        absent = isinstance(error, OSError) and error.errno in _ABSENT
        reason = f"cannot be read as JPEG, PNG or WebP{why}"
        raise UnfitImageError("broken", reason, "replace or remove it", absent=absent) from error


def _refuse_unsuitable(image: ImageFile.ImageFile, min_side: int) -> None:
    """Raises UnfitImageError for what an opened image's header shows. Loads nothing."""
    if image.mode.startswith("I") or any(";16" in str(tile.args) for tile in image.tile):
        raise UnfitImageError(
            "deeper than 8 bits",
            "is deeper than 8 bits a channel",
            "scale it to 8 bits, so that the range is your choice",
        )
    if image.mode not in _MODES_TAKEN:
        raise UnfitImageError(image.mode, f"has the colour mode {image.mode}", "convert it to grey or RGB")
    if min(image.size) < min_side:
        raise UnfitImageError(
            "too small",
            f"is {image.width}x{image.height} pixels, smaller than {min_side}",
            "ask for a smaller size, allow enlarging (min_side=1), or remove it",
        )
    if _is_animated(image):
        raise UnfitImageError("animated", "is animated", "save the frame that is meant as a file of its own")


def _is_animated(image: ImageFile.ImageFile) -> bool:
    if image.format == "MPO":  # a camera's JPEG with further views; the first is the picture
        return False
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _opaque(image: Image.Image) -> Image.Image:
    """The image, grey or RGB, without its alpha channel. Raises UnfitImageError where that is not opaque."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise UnfitImageError("partly transparent", "is partly transparent", "flatten it onto a background")
    return image if image.mode == "L" else image.convert("RGB")
