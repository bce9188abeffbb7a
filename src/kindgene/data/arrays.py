"""A data set held in memory: every image, its label, and the names of the classes.

Shapes: N images, B batch, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from kindgene.data.dataset import Dataset
from kindgene.data.labels import check_indices, check_labels, check_names, chosen, held_out
from kindgene.data.skipped import Skipped

_READ = 256


@dataclass(frozen=True, eq=False)
class ArrayDataset(Dataset):
    """Images in memory, with labels: see `Dataset`.

    Raises ValueError, saying what was found, for anything but float32 images [N, C, H, W] within [-1, 1], one
    int64 label an image that names a class (or none: ``len(class_names)``), and distinct, non-empty class names.
    A class may be without images. `skipped` are the files that were left out on reading.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    flip: bool = False
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        _check_images(self.images)
        check_names(self.class_names)
        check_labels(self.labels, len(self.images), self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at `indices` (long [B]): float32 [B, C, H, W]; their labels are `labels[indices]`."""
        check_indices(indices, len(self))
        return self.images[indices]

    def subset(self, names: Sequence[str]) -> Self:
        """Only the classes `names`, with labels in the order asked for; the images keep their order.

        Images without class are left out. Raises ValueError for an unknown or repeated name, no names at all,
        or classes that have no images.
        """
        kept, labels = chosen(self.labels, self.class_names, names)
        return replace(self, images=self.images[kept], labels=labels, class_names=tuple(names))

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide into (train, held_out), holding out `fraction` of every class, at least one image of each.

        Which images are held out depends on the seed, the class's name and its images alone, so that a class
        is divided alike in the whole data set and in any subset of it. Images without class stay. Raises
        ValueError for a fraction outside (0, 1) and for a class of fewer than two images.
        """
        mask = held_out(self.labels, self.class_names, fraction, seed)
        return self._where(~mask), self._where(mask)

    def _where(self, mask: torch.Tensor) -> Self:
        """The images where `mask` (bool [N]) is true, all classes kept."""
        return replace(self, images=self.images[mask], labels=self.labels[mask])


def in_memory(dataset: Dataset) -> ArrayDataset:
    """All images of a data set as the arrays they are; one that is in memory is returned as it is."""
    if isinstance(dataset, ArrayDataset):
        return dataset
    images = torch.empty((len(dataset), *dataset.shape))
    for part in torch.arange(len(dataset)).split(_READ):
        images[part] = dataset.batch(part)
    return ArrayDataset(images, dataset.labels, dataset.class_names, dataset.flip, dataset.skipped)


def _check_images(images: torch.Tensor) -> None:
    if images.dtype != torch.float32 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} of shape {tuple(images.shape)}; expected float32 [N, C, H, W]")
    if images.numel() == 0:
        raise ValueError(f"images of shape {tuple(images.shape)} hold nothing; at least one image is needed")
    low, high = (float(bound) for bound in torch.aminmax(images))
    if not (low >= -1.0 and high <= 1.0):
        raise ValueError(f"images reach from {low:g} to {high:g}; scale them to [-1, 1]")
