"""Data sets whose images stay where they are, in files say, and are decoded when a batch asks for them.

Nothing but names and labels is held, so a million images fit. Large images are decoded in as many threads as torch
computes in (`torch.get_num_threads`): Pillow decodes and resizes without Python's lock. In a DataLoader's worker
processes torch has one thread, so they do not crowd each other. The threads end with the batch; nothing is left that
a forked process could find missing.

Shapes: N images, B batch, C channels, S pixels a side.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from kindgene.data.dataset import Dataset
from kindgene.data.images import Pixels
from kindgene.data.labels import check_indices, check_labels, check_names, chosen, held_out
from kindgene.data.skipped import Skipped

_GREY = 127.5
_SLOW = 1e-3
_TRIED = 3

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False, kw_only=True)
class LazyDataset(Dataset):
    """Labelled images that `read` gives one by one: see `Dataset`.

    labels: int64 [N]; size: S; channels: 1 or 3; skipped: what was left out. It can be pickled, and read from
    several threads and processes at once.
    """

    labels: Tensor
    class_names: tuple[str, ...]
    size: int
    channels: int
    flip: bool = False
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise ValueError("no images; at least one is needed")
        check_names(self.class_names)
        check_labels(self.labels, len(self.labels), self.class_names)

    @abstractmethod
    def read(self, index: int) -> Pixels:
        """The image at `index`: uint8 [C, S, S]. Raises ValueError, naming it, where it cannot be decoded."""

    @abstractmethod
    def where(self, kept: Tensor) -> Self:
        """The images where `kept` (bool [N]) is true, all classes kept."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        return self.channels, self.size, self.size

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices` (long [B]), decoded: float32 [B, C, S, S].

        The same whatever the number of threads. Raises ValueError for the first that cannot be decoded.
        """
        check_indices(indices, len(self))
        pixels = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for place, read in enumerate(in_threads(self.read, indices.tolist(), torch.get_num_threads())):
            pixels[place] = read
        return to_unit(pixels)

    def subset(self, names: Sequence[str]) -> Self:
        """Only the classes `names`, with labels in the order asked for; the images keep their order.

        Images without class are left out. Raises ValueError for an unknown or repeated name, no names at all,
        or classes that have no images.
        """
        kept, labels = chosen(self.labels, self.class_names, names)
        return replace(self.where(kept), labels=labels, class_names=tuple(names))

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide into (train, held_out), as `ArrayDataset.split` does: the same images for the same seed."""
        mask = held_out(self.labels, self.class_names, fraction, seed)
        return self.where(~mask), self.where(mask)


def in_threads(one: Callable[[int], _T], numbers: Sequence[int], threads: int) -> Iterator[_T]:
    """`one` of each number, in their order: in `threads` threads if each of the first three took over a millisecond.

    Quick ones wait for Python's lock most of the time, and two threads are half as fast as one (measured).
    """
    quickest = math.inf
    for number in numbers[:_TRIED]:
        started = time.perf_counter()
        yield one(number)
        quickest = min(quickest, time.perf_counter() - started)
    rest = numbers[_TRIED:]
    if threads <= 1 or quickest < _SLOW:
        yield from map(one, rest)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(one, rest)


def to_unit(pixels: Pixels) -> Tensor:
    """Bytes 0 to 255 as float32 -1 to 1, both ends included."""
    return torch.from_numpy(pixels).float().div_(_GREY).sub_(1.0)
