"""What a data set is to the rest: labelled images of one shape that are drawn by number.

Shapes: N images, B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from kindgene import random
from kindgene.data.skipped import Skipped

_HASHED = 4096
_FLIPPED = 0.5


class Dataset(ABC):
    """Images with labels. A class is a name; its label is the position of that name in `class_names`.

    The label ``len(class_names)`` is that of an image without class: it trains what all classes share. `flip` says that
    training mirrors every other image, at random.
    """

    labels: Tensor
    """int64 [N]."""
    class_names: tuple[str, ...]
    flip: bool
    skipped: tuple[Skipped, ...] = ()
    """What was left out on reading, since it could not be used."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices` (long [B]): float32 [B, C, H, W]; their labels are `labels[indices]`."""

    @abstractmethod
    def subset(self, names: Sequence[str]) -> Self:
        """Only the classes `names`, with labels in the order asked for; the images keep their order."""

    @abstractmethod
    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide into (train, held_out), holding out `fraction` of every class: `kindgene.data.labels.held_out`."""

    def sample(self, indices: Tensor, numbers: Tensor, seed: int) -> Tensor:
        """The images at `indices` [B] as training draws them for the samples `numbers` [B]: flipped, if `flip`.

        What is random is a function of the seed and each sample's number alone.
        """
        images = self.batch(indices)
        return mirror(images, flips(seed, numbers)) if self.flip else images

    def fingerprint(self) -> dict[str, Any]:
        """What tells this data from other data: size, class names, SHA-256 of all labels and of the images.

        Of many images 4,096 are hashed, evenly spaced.
        """
        count = len(self)
        images = hashlib.sha256()
        for part in evenly_spaced(count).split(256):
            images.update(self.batch(part).contiguous().numpy().tobytes())
        return {
            "images": count,
            "class_names": list(self.class_names),
            "flip": self.flip,
            "labels_sha256": hashlib.sha256(self.labels.numpy().tobytes()).hexdigest(),
            "images_sha256": images.hexdigest(),
        }

    def counts(self) -> dict[str, int]:
        """How many images each class has; those without class are not among them."""
        counts = torch.bincount(self.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, counts[: len(self.class_names)].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.labels)


def evenly_spaced(count: int) -> Tensor:
    """The numbers 0 to `count - 1`, or 4,096 of them: what a fingerprint looks at."""
    return torch.arange(count) if count <= _HASHED else torch.arange(_HASHED) * count // _HASHED


def flips(seed: int, numbers: Tensor) -> Tensor:
    """Which of the samples `numbers` [B] are mirrored: bool [B]."""
    return random.uniform(seed, random.Purpose.FLIP, numbers) < _FLIPPED


def mirror(images: Tensor, flipped_B: Tensor) -> Tensor:
    """The images [B, C, H, W], those where `flipped` [B] is true mirrored left to right."""
    return torch.where(flipped_B[:, None, None, None], images.flip(-1), images)
