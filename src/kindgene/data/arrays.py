"""A data set held in memory: every image, its label, and the names of the classes.

Shapes: N images, B batch, C channels, H height, W width.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from kindgene.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class ArrayDataset(Dataset):
    """Images in memory, with labels: see `Dataset`.

    Raises ValueError, saying what was found, for anything but float32 images [N, C, H, W] within [-1, 1], one
    int64 label an image that names a class (or none: ``len(class_names)``), and distinct, non-empty class names.
    A class may be without images.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    flip: bool = False

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_names(self.class_names)
        _check_labels(self.labels, len(self.images), self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at `indices` (long [B]): float32 [B, C, H, W]; their labels are `labels[indices]`."""
        if indices.dtype != torch.int64 or indices.ndim != 1:
            raise ValueError(f"indices are {indices.dtype} of shape {tuple(indices.shape)}; expected int64 [B]")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise ValueError(
                f"indices reach from {int(indices.min())} to {int(indices.max())}, "
                f"but the data set has the images 0 to {len(self) - 1}"
            )
        return self.images[indices]

    def subset(self, names: Sequence[str]) -> Self:
        """Only the classes `names`, with labels in the order asked for; the images keep their order.

        Images without class are left out. Raises ValueError for an unknown or repeated name, no names at all, or classes that have no images.
        """
        if isinstance(names, str):
            raise ValueError(f"names is the single string {names!r}; give a list of class names, as in [{names!r}]")
        _check_names(names)
        counts = self.counts()
        unknown = [name for name in names if name not in counts]
        if unknown:
            raise ValueError(f"unknown class {_listed(unknown)}; the data set has {_listed(self.class_names)}")
        empty = [name for name in names if counts[name] == 0]
        if empty:
            raise ValueError(f"no images of class {_listed(empty)}; leave it out or add images")
        position = {name: label for label, name in enumerate(names)}
        labels = torch.tensor([*(position.get(name, -1) for name in self.class_names), -1])[self.labels]
        kept = labels >= 0
        return replace(self, images=self.images[kept], labels=labels[kept], class_names=tuple(names))

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide into (train, held_out), holding out `fraction` of every class, at least one image of each.

        Which images are held out depends on the seed, the class's name and its images alone, so that a class
        is divided alike in the whole data set and in any subset of it: nothing held out leaks into another's
        training. Images without class stay. Raises ValueError for a fraction outside (0, 1) and for a class of fewer than two images.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"the held-out fraction is {fraction}; it must lie between 0 and 1, both excluded")
        if not 0 <= seed < 2**64:
            raise ValueError(f"the seed is {seed}; it must be at least 0 and below 2**64")
        held_out = torch.zeros(len(self), dtype=torch.bool)
        counts = self.counts()
        named = sum(counts.values())
        by_class = torch.argsort(self.labels, stable=True)[:named].split(list(counts.values()))
        for members, (name, count) in zip(by_class, counts.items(), strict=True):
            if count < 2:
                raise ValueError(f"class {name!r} has {count} images; a split needs two of each class")
            share = min(max(round(count * fraction), 1), count - 1)
            held_out[members[_order(seed, name, count)[:share]]] = True
        return self._where(~held_out), self._where(held_out)

    def _where(self, mask: torch.Tensor) -> Self:
        """The images where `mask` (bool [N]) is true, all classes kept."""
        return replace(self, images=self.images[mask], labels=self.labels[mask])


def _order(seed: int, name: str, count: int) -> torch.Tensor:
    """A random order of `count` images, long [count]: Philox's raw words, sorted."""
    stream = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)
    return torch.from_numpy(np.argsort(words, kind="stable"))


def _check_images(images: torch.Tensor) -> None:
    if images.dtype != torch.float32 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} of shape {tuple(images.shape)}; expected float32 [N, C, H, W]")
    if images.numel() == 0:
        raise ValueError(f"images of shape {tuple(images.shape)} hold nothing; at least one image is needed")
    low, high = (float(bound) for bound in torch.aminmax(images))
    if not (low >= -1.0 and high <= 1.0):
        raise ValueError(f"images reach from {low:g} to {high:g}; scale them to [-1, 1]")


def _check_labels(labels: torch.Tensor, count: int, class_names: Sequence[str]) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"expected int64 of shape ({count},), one for each image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > len(class_names):
        raise ValueError(
            f"labels reach from {low} to {high}; with {len(class_names)} class names they must lie in "
            f"0 to {len(class_names) - 1}, or be {len(class_names)} for an image without class"
        )


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("no class names; name at least one class")
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"class names must be non-empty strings; found {_listed(names)}")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"class {_listed(repeated)} is named more than once; name each class once")


def _listed(names: Iterable[object], limit: int = 20) -> str:
    """Names for an error message: quoted, and cut where there are too many to read."""
    quoted = [repr(name) for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "")
