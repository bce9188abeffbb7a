"""Images kept as files or as files' bytes: looked through before use, then held in memory or decoded on demand.

**In memory or not.** Images are held as float32 where all of them take less than 1 GiB (5,461 images of 256x256
RGB, 349,525 of 32x32 grey), since that is fastest; otherwise they are decoded anew for each batch.

**What is checked.** Images that are held are all decoded at once, so each fault is found. Of others the headers are
read: that finds what is tiny, animated, CMYK, 16-bit, transparent or no image, at thousands a second. Damage
further in shows only on decoding; training then stops with an error that names the file, for a run whose images
depend on what happened to fail could not be repeated. ``check="full"`` decodes all of them beforehand. Encoding into
latents decodes each image once and can leave out what fails (`kindgene.data.encode`).

Shapes: N images, C channels, S pixels a side.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.data.dataset import Dataset
from kindgene.data.images import Pixels, Source, UnfitImageError, check_header, read_pixels
from kindgene.data.lazy import LazyDataset, in_threads, to_unit
from kindgene.data.skipped import DamagedImageError, Skipped, refuse, warn
from kindgene.progress import NoProgress, Progress

Check = Literal["headers", "full"]

_MEMORY = 2**30
_FLOAT = 4
_BLOCK = 1024
_READERS = 16  # where reading a header waits for a slow disk, more threads than cores help
_LONG = 5000  # fewer images are looked through in moments, and need no report


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedDataset(LazyDataset):
    """JPEG, PNG or WebP images, decoded on demand. `min_side`: what is smaller is unfit."""

    min_side: int

    @abstractmethod
    def source(self, index: int) -> Source:
        """Where the encoded image is. Raises UnfitImageError where there is none."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error calls the image."""

    def read(self, index: int) -> Pixels:
        """The image at `index`: uint8 [C, S, S].

        Raises DamagedImageError, naming it, where it cannot be decoded, and another ValueError where it is gone.
        """
        try:
            return self.decode(index)
        except UnfitImageError as error:
            skipped = Skipped(self.name(index), error.kind, str(error), error.advice)
            if error.absent:
                raise ValueError(f"{skipped}; it was there when the images were looked through") from error
            raise DamagedImageError(
                f"{skipped}; {skipped.advice}, or have all images decoded first, which leaves such out (check=full)",
                skipped,
            ) from error

    def decode(self, index: int) -> Pixels:
        """The image at `index`: uint8 [C, S, S]. Raises UnfitImageError."""
        return read_pixels(self.source(index), self.size, self.channels, self.min_side)

    def check(self, index: int) -> None:
        """Raises UnfitImageError for what the header shows."""
        check_header(self.source(index), self.min_side)


def look_through(
    candidates: EncodedDataset,
    unfit: Sequence[Skipped],
    origin: str,
    *,
    strict: bool,
    in_memory: bool | None,
    check: Check,
    progress: Progress | None,
) -> Dataset:
    """The fit ones among `candidates`, in memory or on demand as the module says; `in_memory` decides otherwise.

    What is unfit, `unfit` (found already) included, is left out and said in one warning about `origin`; of `strict`
    raises ValueError for the first. Raises ValueError too for a class of which nothing is left.
    """
    if strict:
        refuse(unfit)
    if check not in ("headers", "full"):
        raise ValueError(f"check is {check!r}; it is 'headers' or 'full'")
    count = len(candidates)
    if in_memory is None:
        in_memory = fits_memory(candidates)
    fit = np.ones(count, dtype=bool)
    skipped = list(unfit)
    images = np.empty((count if in_memory else 0, *candidates.shape), dtype=np.uint8)

    decoding = in_memory or check == "full"
    threads = torch.get_num_threads() if decoding else _READERS
    for index, found in enumerate(_each(candidates, count, decoding, threads, progress)):
        if isinstance(found, UnfitImageError):
            fit[index] = False
            skipped.append(Skipped(candidates.name(index), found.kind, str(found), found.advice))
            if strict:
                refuse(skipped)
        elif in_memory:
            assert found is not None
            images[index] = found

    kept = torch.from_numpy(fit)
    _refuse_emptied(candidates, kept, skipped)
    warn(skipped, origin, count + len(unfit))
    lazy = replace(candidates.where(kept), skipped=tuple(skipped))
    if not in_memory:
        return lazy
    if not fit.all():
        images = images[fit]
    return ArrayDataset(to_unit(images), lazy.labels, lazy.class_names, lazy.flip, lazy.skipped)


def fits_memory(dataset: Dataset) -> bool:
    """Whether all images take less than 1 GiB as float32."""
    return len(dataset) * math.prod(dataset.shape) * _FLOAT < _MEMORY


def _each(
    candidates: EncodedDataset, count: int, decoding: bool, threads: int, progress: Progress | None
) -> Iterator[Pixels | UnfitImageError | None]:
    """What comes of each image, in their order: pixels, or None where only headers are read, or why it is unfit."""

    def one(index: int) -> Pixels | UnfitImageError | None:
        try:
            if decoding:
                return candidates.decode(index)
            candidates.check(index)
        except UnfitImageError as error:
            return error
        return None

    shown = NoProgress() if progress is None or count < _LONG else progress
    started = time.perf_counter()
    shown.start(count)
    try:
        for done in range(0, count, _BLOCK):
            block = range(done, min(done + _BLOCK, count))
            yield from in_threads(one, block, threads)
            shown.update(block.stop, images_per_second=block.stop / (time.perf_counter() - started))
    finally:
        shown.close()


def _refuse_emptied(candidates: EncodedDataset, kept: torch.Tensor, skipped: Sequence[Skipped]) -> None:
    """Raises ValueError for a class that lost all its images, and where no image is left."""
    classes = len(candidates.class_names)
    before = torch.bincount(candidates.labels, minlength=classes + 1)
    after = torch.bincount(candidates.labels[kept], minlength=classes + 1)
    emptied = (before > 0) & (after == 0)
    if after.any():
        emptied[classes] = False  # images without class may all go
    for label in emptied.nonzero()[:, 0].tolist():
        name = candidates.name(int((candidates.labels == label).nonzero()[0]))
        first = next(each for each in skipped if each.path == name)
        whose = f"class {candidates.class_names[label]!r}" if label < classes else "this data"
        raise ValueError(f"none of the images of {whose} can be used, the first: {first}; {first.advice}")
