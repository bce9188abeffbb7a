"""The Frechet distance of two Gaussians: FID on Inception's features, sFID on its spatial ones, FD on any others.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)            (Dowson and Landau 1982; Heusel et al. 2017)

With S1 = A A^T and S2 = B B^T the last trace is the sum of the singular values of B^T A. So no square root of a product
is needed, which public code takes with `scipy.linalg.sqrtm`, adding 1e-6 to the diagonals where that fails: singular
covariances (fewer samples than features) are exact here, and the distance of a Gaussian from itself is 0 to 1e-12.
"""

import torch
from torch import Tensor

from kindgene.evaluation.statistics import Gaussian


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """The squared Frechet distance, as FID is defined; never below 0.

    Raises ValueError where the two have not the same number of features.
    """
    if one.dimension != other.dimension:
        raise ValueError(f"{one.dimension} features against {other.dimension}: they are of different extractors")
    apart = (one.mean - other.mean).square().sum()
    together = torch.linalg.svdvals(_factor(other.covariance).T @ _factor(one.covariance)).sum()
    distance = apart + one.covariance.trace() + other.covariance.trace() - 2 * together
    return max(float(distance), 0.0)


def _factor(covariance: Tensor) -> Tensor:
    """A [D, R] with A A^T the covariance, R its rank; eigenvalues below zero are rounding, and count as zero."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > 0
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor
