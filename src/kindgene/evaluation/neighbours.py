"""Improved precision and recall (Kynkaanniemi et al. 2019), with k = 3 as ADM has them.

The manifold of a set of points is the union of balls, one about each point, that reach to its k-th nearest neighbour
in the set. Precision is the share of samples in the manifold of the real images, recall the share of real images in
that of the samples. Both depend on how many there are: compare at equal numbers.

Distances are computed in float64, a block at a time; ADM computes them in float16 on a GPU.

Shapes: N real images, M samples, D features.
"""

import torch
from torch import Tensor

K = 3
_BLOCK = 2_048


def precision_recall(
    real_ND: Tensor, samples_MD: Tensor, *, k: int = K, block: int = _BLOCK, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """(precision, recall) of samples against real images.

    Raises ValueError for features of different widths and unless there are more than `k` of each.
    """
    if real_ND.ndim != 2 or samples_MD.ndim != 2 or real_ND.shape[1] != samples_MD.shape[1]:
        raise ValueError(f"features have the shapes {tuple(real_ND.shape)} and {tuple(samples_MD.shape)}")
    for name, points in (("real images", real_ND), ("samples", samples_MD)):
        if len(points) <= k:
            raise ValueError(f"precision and recall with {k} neighbours need more than {k} {name}, found {len(points)}")
    real, samples = real_ND.to(device, torch.float64), samples_MD.to(device, torch.float64)
    centre = real.mean(0)  # distances stay, and lose fewer digits
    real, samples = real - centre, samples - centre
    real_radii, sample_radii = _radii(real, k, block), _radii(samples, k, block)
    met = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    within = 0
    for start in range(0, len(samples), block):
        part = slice(start, start + block)
        part_met = torch.zeros(len(samples[part]), dtype=torch.bool, device=real.device)
        for first in range(0, len(real), block):
            columns = slice(first, first + block)
            distances = _distances(samples[part], real[columns])
            part_met |= (distances <= real_radii[columns]).any(1)
            met[columns] |= (distances <= sample_radii[part, None]).any(0)
        within += int(part_met.sum())
    return within / len(samples), int(met.sum()) / len(real)


def _radii(points: Tensor, k: int, block: int) -> Tensor:
    """The squared distance from each point to its k-th nearest other one."""
    radii = []
    for row, part in enumerate(points.split(block)):
        nearest = part.new_full((len(part), k), torch.inf)
        for column, others in enumerate(points.split(block)):
            distances = _distances(part, others)
            if row == column:
                distances.fill_diagonal_(torch.inf)  # itself
            nearest = torch.cat([nearest, distances], dim=1).topk(k, dim=1, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances of all pairs; those of equal points are 0 but for rounding."""
    squares = one.square().sum(1)[:, None] + other.square().sum(1)
    return squares.addmm_(one, other.T, alpha=-2)
