"""Streamed statistics are those of all samples at once, however they came."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene.evaluation.statistics import Gaussian, Statistics


def drawn(count, dimension, seed=0, offset=0.0):
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)).double() + offset


def of(*batches):
    found = Statistics(batches[0].shape[1])
    for batch in batches:
        found.update(batch)
    return found


def test_they_are_numpys():
    x = drawn(50, 7, offset=3.0)
    found = of(x.float()).gaussian()
    assert found.count == 50
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, x.float().double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.float().double().numpy(), rowvar=False), rtol=1e-10)


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 99), parts=st.integers(1, 4))
def test_batches_order_and_merging_do_not_matter(cuts, seed, parts):
    x = drawn(40, 3, seed, offset=5.0)
    whole = of(x).gaussian()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    bounds = [0, *sorted(cuts), 40]
    batches = [x[order][low:high] for low, high in pairwise(bounds)]
    workers = [Statistics(3) for _ in range(parts)]
    for number, batch in enumerate(batches):
        workers[number % parts].update(batch)
    merged = Statistics(3)
    for worker in workers:
        merged.merge(worker)
    found = merged.gaussian()
    assert found.count == 40
    torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-11, atol=1e-12)


def test_a_large_mean_costs_no_digits():
    """Sums of squares would leave five digits of sixteen here."""
    x = drawn(1000, 4)
    near, far = of(*x.split(64)).gaussian(), of(*(x + 2.0**20).split(64)).gaussian()
    torch.testing.assert_close(far.covariance, near.covariance, rtol=1e-8, atol=1e-9)


def test_a_covariance_knows_when_it_is_singular():
    assert of(drawn(4, 4)).gaussian().singular
    assert not of(drawn(5, 4)).gaussian().singular
    assert not Gaussian(torch.zeros(4).double(), torch.eye(4).double(), None).singular


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples, found 1"):
        of(drawn(1, 3)).gaussian()
    with pytest.raises(ValueError, match=r"shape \(2, 4\); expected \[B, 3\]"):
        Statistics(3).update(drawn(2, 4))
    with pytest.raises(ValueError, match="not finite"):
        Statistics(2).update(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match="do not merge"):
        Statistics(2).merge(Statistics(3))
    with pytest.raises(ValueError, match=r"expected \[D\] and \[D, D\]"):
        Gaussian(torch.zeros(2), torch.zeros(3, 3), 5)
    with pytest.raises(ValueError, match="not symmetric"):
        Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 5)
    with pytest.raises(ValueError, match="not finite"):
        Gaussian(torch.tensor([torch.inf, 0.0]), torch.eye(2), 5)
