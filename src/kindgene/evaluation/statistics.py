"""Mean and covariance of features, streamed: a batch, or another process's share, is merged and forgotten.

Not sums of x and x x^T, whose difference loses digits where the mean is large against the spread, but the mean and the
sum of squares about it, merged pairwise (Chan, Golub and LeVeque 1983). All in float64. The order of batches and how
they were cut change the result by rounding alone.

Shapes: N samples, B batch, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gaussian:
    """What a Frechet distance compares: mean [D] and covariance [D, D], float64; `count` samples, None: not recorded.

    Raises ValueError for shapes that do not go together, a covariance that is not symmetric, and values not finite.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    def __post_init__(self) -> None:
        dimension = len(self.mean)
        if self.mean.ndim != 1 or self.covariance.shape != (dimension, dimension):
            raise ValueError(
                f"a mean of shape {tuple(self.mean.shape)} and a covariance of shape {tuple(self.covariance.shape)}; "
                "expected [D] and [D, D]"
            )
        if not bool(self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError("the mean or the covariance holds values that are not finite")
        if not torch.allclose(self.covariance, self.covariance.T, rtol=1e-5, atol=1e-8):
            raise ValueError("the covariance is not symmetric")

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @property
    def singular(self) -> bool:
        """Whether there are too few samples (D or fewer) for a covariance of full rank."""
        return self.count is not None and self.count <= self.dimension


@dataclass(eq=False)
class Statistics:
    """The running statistics of features with `dimension` values a sample; `scatter` is sum (x - mean)(x - mean)^T."""

    dimension: int
    count: int = 0
    mean: Tensor = field(init=False)
    scatter: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.dimension, dtype=torch.float64)
        self.scatter = torch.zeros(self.dimension, self.dimension, dtype=torch.float64)

    def update(self, features_BD: Tensor) -> None:
        """Takes a batch in. Raises ValueError for another width and for values that are not finite."""
        if features_BD.ndim != 2 or features_BD.shape[1] != self.dimension:
            raise ValueError(f"features have the shape {tuple(features_BD.shape)}; expected [B, {self.dimension}]")
        if not len(features_BD):
            return
        if not bool(features_BD.isfinite().all()):
            raise ValueError("features hold values that are not finite")
        batch = features_BD.detach().double()
        mean = batch.mean(0)
        about = batch - mean
        self._take(len(batch), mean.cpu(), (about.T @ about).cpu())

    def merge(self, other: Self) -> None:
        """Takes in what other batches, or another process, have seen."""
        if other.dimension != self.dimension:
            raise ValueError(f"statistics of {other.dimension} features do not merge with those of {self.dimension}")
        if other.count:
            self._take(other.count, other.mean, other.scatter)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance (divided by N - 1). Raises ValueError for fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, found {self.count}")
        return Gaussian(self.mean.clone(), self.scatter / (self.count - 1), self.count)

    def _take(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan, Golub and LeVeque's equations 2.1."""
        total = self.count + count
        apart = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(apart, apart, alpha=self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total
