"""Many images, batch by batch, to what metrics are made of: nothing but sums and, if asked, pooled features is kept.

Meters of different images, batches or processes merge; how images were cut into batches changes sums by rounding alone.

Shapes: N images, B batch, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from kindgene.evaluation.features import Extractor, Features
from kindgene.evaluation.inception_score import InceptionScore
from kindgene.evaluation.statistics import Statistics
from kindgene.training.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What a meter keeps besides the pooled statistics; `features` are pooled features of so many images at most."""

    spatial: bool = False
    score: bool = False
    features: int = 0


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one process tells the others: all of a meter but its extractor."""

    pooled: Statistics
    spatial: Statistics | None
    score: InceptionScore | None
    features: list[Tensor]
    numbers: list[Tensor]


@dataclass(eq=False)
class Meter:
    """Measures `total` images, numbered from 0, with an extractor. See `update`.

    Of `keep.features` fewer than `total`, those of evenly spaced images are kept.
    """

    extractor: Extractor
    total: int
    keep: Keep = field(default_factory=Keep)

    def __post_init__(self) -> None:
        self.pooled = Statistics(self.extractor.dimension)
        self.spatial: Statistics | None = None
        self.score = InceptionScore(self.total) if self.keep.score else None
        self._device = torch.device("cpu")
        self._features: list[Tensor] = []
        self._numbers: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """Where the features came from last; the CPU before the first."""
        return self._device

    @property
    def count(self) -> int:
        """How many images were seen."""
        return self.pooled.count

    def update(self, pixels: Tensor, numbers_B: Tensor) -> Features:
        """Takes in the images [B, C, H, W] (bytes) of these numbers; returns their features."""
        features = _exact(self.extractor(pixels))
        self._device = features.pooled.device
        self.pooled.update(features.pooled)
        if self.keep.spatial:
            assert features.spatial is not None, "asked of an extractor that has none"
            if self.spatial is None:
                self.spatial = Statistics(features.spatial.shape[1])
            self.spatial.update(features.spatial)
        if self.score is not None:
            assert features.logits is not None, "asked of an extractor that has none"
            self.score.update(features.logits, numbers_B)
        if self.keep.features:
            kept_B = self._is_kept(numbers_B)
            self._features.append(features.pooled[kept_B.to(features.pooled.device)].cpu())
            self._numbers.append(numbers_B[kept_B])
        return features

    def merge(self, other: Self) -> None:
        """Takes in what another meter has seen of the same `total` images, with the same extractor."""
        if (other.extractor.sha256, other.total, other.keep) != (self.extractor.sha256, self.total, self.keep):
            raise ValueError("meters of other extractors, images or purposes do not merge")
        self._take(other._seen())

    def gathered(self, processes: Processes) -> Meter:
        """A meter of what the meters of all processes have seen, the same in each of them."""
        whole = Meter(self.extractor, self.total, self.keep)
        whole._device = self._device
        for seen in processes.gather(self._seen()):
            whole._take(seen)
        return whole

    def features(self) -> Tensor | None:
        """The pooled features kept, float32 [N, D], in the order of the images' numbers; None if none were to be."""
        if not self.keep.features:
            return None
        if not self._features:
            return torch.zeros(0, self.extractor.dimension)
        return torch.cat(self._features)[torch.cat(self._numbers).argsort()]

    def _seen(self) -> _Seen:
        return _Seen(self.pooled, self.spatial, self.score, self._features, self._numbers)

    def _take(self, seen: _Seen) -> None:
        self.pooled.merge(seen.pooled)
        if seen.spatial is not None:
            self.spatial = Statistics(seen.spatial.dimension) if self.spatial is None else self.spatial
            self.spatial.merge(seen.spatial)
        if self.score is not None and seen.score is not None:
            self.score.merge(seen.score)
        self._features += seen.features
        self._numbers += seen.numbers

    def _is_kept(self, numbers_B: Tensor) -> Tensor:
        """bool [B]: image i is kept where i * kept / total passes a whole number before the next image."""
        kept = min(self.keep.features, self.total)
        return (numbers_B + 1) * kept // self.total > numbers_B * kept // self.total


def _exact(features: Features) -> Features:
    """On a device that computes in float64: Apple's GPUs do not."""
    if features.pooled.device.type != "mps":
        return features
    parts = (features.pooled, features.spatial, features.logits)
    return Features(*[None if part is None else part.cpu() for part in parts])  # type: ignore[arg-type]
