"""What metrics compare: an extractor's features of images, and the one interface that all extractors have.

Every extractor sees what a person would be shown: samples are rounded to 8 bits, as in a PNG file, before anything
else (DiT's and ADM's evaluations read such files). Real images come from 8 bits and are not changed by it.

Shapes: N images, B batch, C channels, H height, W width, D features, S spatial features, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kindgene.data.dataset import Dataset


@dataclass(frozen=True)
class Features:
    """An extractor's view of a batch, all float32: `pooled` [B, D], and where it has them `spatial` [B, S], `logits`.

    `logits` [B, K] are those of its own classes, without bias where ADM leaves the bias out (Inception).
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Extractor(ABC):
    """Turns images into features; two results compare only if `sha256` and `preprocessing` are the same.

    `name` is what a command line calls it; `has_spatial` and `has_logits` say what `Features` it gives.
    """

    name: str
    preprocessing: str
    """What is done to images before the network sees them, in words."""
    dimension: int
    sha256: str
    """Of its weights: sorted (name, dtype, shape, bytes)."""
    has_spatial: bool = False
    has_logits: bool = False

    @abstractmethod
    def __call__(self, pixels: Tensor) -> Features:
        """The features of images [B, C, H, W] of bytes, on the extractor's device.

        Each image's are its own: they do not depend on the batch but by rounding. Raises ValueError for images of a
        kind that it does not take.
        """

    def to_dict(self) -> dict[str, Any]:
        """What a result says of the extractor: plain data for JSON."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "dimension": self.dimension,
            "preprocessing": self.preprocessing,
        }


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes: clipped, then rounded, ``floor(127.5 x + 128)`` (DiT's ``sample_ddp.py``).

    Bytes stay as they are. Raises ValueError for values that are not finite.
    """
    if images.dtype == torch.uint8:
        return images
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images hold values that are not finite; the model that made them has diverged")
    return (images.float() * 127.5 + 128.0).clamp(0, 255).to(torch.uint8)


def to_rgb(pixels: Tensor) -> Tensor:
    """Bytes [B, 1 or 3, H, W] as [B, 3, H, W]: grey becomes three equal channels. ValueError for other shapes."""
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"images have the shape {tuple(pixels.shape)}; expected [N, 1 or 3, H, W]")
    return pixels.expand(-1, 3, -1, -1)


def full_precision() -> AbstractContextManager[None]:
    """Convolutions in whole float32 meanwhile: by default a GPU rounds their inputs to 10 bits (TF32)."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )


def batches_of(dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of a data set, in order: (bytes [B, C, H, W], their numbers [B])."""
    for numbers in torch.arange(len(dataset)).split(batch_size):
        yield to_pixels(dataset.batch(numbers)), numbers
