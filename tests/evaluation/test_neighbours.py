"""Precision and recall against scikit-learn's neighbours, by brute force."""

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from kindgene.evaluation.neighbours import precision_recall


def points(count, dimension=5, seed=0, shift=0.0):
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)) + shift


def by_brute_force(real, samples, k):
    real, samples = real.double().numpy(), samples.double().numpy()
    radii = [NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k] for x in (real, samples)]
    distances = pairwise_distances(samples, real)
    precision = np.mean((distances <= radii[0][None, :]).any(1))
    recall = np.mean((distances <= radii[1][:, None]).any(0))
    return precision, recall


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 7, 2048])
def test_they_are_those_of_scikit_learn(k, block):
    real, samples = points(41), points(29, seed=1, shift=0.8)
    expected = by_brute_force(real, samples, k)
    assert all(0 < share < 1 for share in expected)
    assert precision_recall(real, samples, k=k, block=block) == pytest.approx(expected, abs=0)


def test_order_does_not_matter_and_sides_swap():
    real, samples = points(30), points(30, seed=1, shift=1.0)
    precision, recall = precision_recall(real, samples)
    assert precision_recall(real.flip(0), samples[torch.randperm(30)]) == (precision, recall)
    assert precision_recall(samples, real) == (recall, precision)


def test_their_bounds():
    real = points(20)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, points(20, shift=1e3)) == (0.0, 0.0)


def test_precision_is_of_quality_and_recall_of_variety():
    """Samples that are all near one real image: good, and all alike."""
    real = points(200, dimension=2)
    samples = real[:1] + points(50, dimension=2, seed=1) * 1e-3
    precision, recall = precision_recall(real, samples)
    assert precision == 1.0
    assert recall < 0.05


def test_a_large_mean_costs_no_digits():
    real, samples = points(30).double(), points(30, seed=1, shift=0.5).double()
    assert precision_recall(real + 1e5, samples + 1e5) == precision_recall(real, samples)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="more than 3 real images, found 3"):
        precision_recall(points(3), points(9))
    with pytest.raises(ValueError, match="more than 3 samples, found 2"):
        precision_recall(points(9), points(2))
    with pytest.raises(ValueError, match=r"\(9, 5\) and \(9, 4\)"):
        precision_recall(points(9), points(9, dimension=4))
