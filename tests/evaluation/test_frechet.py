"""The Frechet distance against closed forms and against scipy's square root, as public code takes it."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.image.fid import FrechetInceptionDistance

from kindgene.evaluation.frechet import frechet_distance
from kindgene.evaluation.statistics import Gaussian, Statistics

numbers = st.floats(-10, 10)
scales = st.floats(0.01, 10)


def gaussian(mean, covariance):
    return Gaussian(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double(), None)


def of_samples(count, dimension, seed):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(dimension, dimension, generator=generator).double()
    statistics = Statistics(dimension)
    statistics.update(torch.randn(count, dimension, generator=generator).double() @ mixed + seed)
    return statistics.gaussian()


def by_square_root(one, other):
    """ADM's formula, term by term, without its fallbacks."""
    root = scipy.linalg.sqrtm(one.covariance.numpy() @ other.covariance.numpy())
    apart = one.mean.numpy() - other.mean.numpy()
    return apart @ apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * np.trace(root.real)


@settings(max_examples=40)
@given(*[arrays(np.float64, 4, elements=numbers)] * 2, *[arrays(np.float64, 4, elements=scales)] * 2)
def test_independent_features_have_a_closed_form(m1, m2, s1, s2):
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    found = frechet_distance(gaussian(m1, np.diag(s1**2)), gaussian(m2, np.diag(s2**2)))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=40)
@given(arrays(np.float64, (3, 3), elements=numbers), scales)
def test_scaled_covariances_have_a_closed_form(a, scale):
    """Of S and k^2 S it is (1 - k)^2 tr S, whatever S, singular or not."""
    covariance = a @ a.T
    found = frechet_distance(gaussian(np.zeros(3), covariance), gaussian(np.zeros(3), scale**2 * covariance))
    assert found == pytest.approx((1 - scale) ** 2 * np.trace(covariance), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dimension", [1, 5, 64])
def test_it_is_that_of_scipys_square_root(dimension):
    one, other = of_samples(300, dimension, 1), of_samples(200, dimension, 2)
    assert frechet_distance(one, other) == pytest.approx(by_square_root(one, other), rel=1e-8)
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other), rel=1e-12)


@pytest.mark.parametrize("count", [10, 64, 500])
def test_of_a_gaussian_and_itself_it_is_zero(count):
    """Also where the covariance is singular, of fewer samples than features."""
    one = of_samples(count, 64, 3)
    assert frechet_distance(one, one) <= 1e-11 * float(one.covariance.trace())


def test_singular_covariances_are_exact():
    """Two lines at right angles through the origin: nothing overlaps, so the traces add up."""
    one, other = gaussian([0, 0], [[4, 0], [0, 0]]), gaussian([0, 0], [[0, 0], [0, 9]])
    assert frechet_distance(one, other) == 13.0


def test_rotating_both_changes_nothing():
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double())[0]
    one, other = of_samples(50, 6, 1), of_samples(50, 6, 2)
    turned = [gaussian(turn @ each.mean, turn @ each.covariance @ turn.T) for each in (one, other)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(one, other), rel=1e-10)


def waves(count, rate):
    """Features [count, 8] that are a formula, so that a figure once computed elsewhere is theirs on every machine."""
    place = torch.arange(count * 8).double()
    return (torch.sin(place * 0.731 * rate) + torch.cos(place.square() * 0.000917 * rate)).view(count, 8)


WAVES = waves(120, 1.0), waves(90, 1.7) * 1.3 + 0.2


def of_features(features):
    statistics = Statistics(features.shape[1])
    statistics.update(features)
    return statistics.gaussian()


def test_features_by_a_formula_give_torchmetrics_figure():
    """Golden figure by torchmetrics 1.9.0, an independent implementation, from the features on."""
    assert frechet_distance(*map(of_features, WAVES)) == pytest.approx(4.812084957625, rel=1e-11)


class AsTheyAre(torch.nn.Module):
    """Features that are the image's own numbers: the extractor they come with needs more packages."""

    num_features = 8

    def forward(self, images):
        return images.flatten(1)


def test_it_is_torchmetrics():
    theirs = FrechetInceptionDistance(feature=AsTheyAre(), normalize=True, input_img_size=(1, 2, 4))
    theirs.set_dtype(torch.float64)
    for features, real in zip(WAVES, (True, False), strict=True):
        theirs.update(features.view(-1, 1, 2, 4), real=real)
    assert frechet_distance(*map(of_features, WAVES)) == pytest.approx(float(theirs.compute()), rel=1e-8)


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="3 features against 4"):
        frechet_distance(of_samples(9, 3, 0), of_samples(9, 4, 0))
