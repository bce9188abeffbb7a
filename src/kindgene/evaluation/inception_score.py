"""The inception score: how sure a classifier is of each image, and how varied they are together.

    IS = mean over splits of exp( mean over images of KL( p(y|x) || p(y) ) )               (Salimans et al. 2016)

p(y|x) is the softmax of logits without bias, p(y) its mean over the split; a split has 5,000 images (both as ADM). Per
split only sums are kept. ADM cuts the splits off a shuffled archive; here the images may come class by class, so
image i goes to split i mod (number of splits), which mixes the classes in each (ours).

Shapes: B batch, K classes.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

SPLIT = 5_000


class InceptionScore:
    """The score of `total` images, which may come in any order and any batches, by their numbers from 0."""

    def __init__(self, total: int, split: int = SPLIT) -> None:
        if total < 1 or split < 1:
            raise ValueError(f"{total} images in splits of {split}: both must be at least 1")
        self.splits = math.ceil(total / split)
        self._counts = torch.zeros(self.splits, dtype=torch.int64)
        self._entropies = torch.zeros(self.splits, dtype=torch.float64)
        self._sums: Tensor | None = None  # [splits, K], once K is known

    def update(self, logits_BK: Tensor, numbers_B: Tensor) -> None:
        """Takes in the logits of the images with these numbers."""
        if logits_BK.ndim != 2 or len(logits_BK) != len(numbers_B):
            raise ValueError(f"{tuple(logits_BK.shape)} logits for {len(numbers_B)} images; expected [B, K]")
        logs = logits_BK.detach().double().log_softmax(1).cpu()
        shares = logs.exp()
        if self._sums is None:
            self._sums = torch.zeros(self.splits, shares.shape[1], dtype=torch.float64)
        split_B = numbers_B.cpu() % self.splits
        self._sums.index_add_(0, split_B, shares)
        self._entropies.index_add_(0, split_B, torch.special.xlogy(shares, shares).sum(1))
        self._counts += torch.bincount(split_B, minlength=self.splits)

    def merge(self, other: Self) -> None:
        """Takes in what another process has seen of the same images."""
        if other.splits != self.splits:
            raise ValueError(f"scores of {other.splits} and {self.splits} splits do not merge")
        if other._sums is not None:
            self._sums = other._sums.clone() if self._sums is None else self._sums + other._sums
        self._entropies += other._entropies
        self._counts += other._counts

    def value(self) -> float:
        """The score. Raises ValueError where no image was seen."""
        if self._sums is None:
            raise ValueError("an inception score needs at least one image")
        seen = self._counts > 0
        counts = self._counts[seen]
        mean = self._sums[seen] / counts[:, None]
        divergence = self._entropies[seen] / counts - torch.special.xlogy(mean, mean).sum(1)
        return float(divergence.exp().mean())
