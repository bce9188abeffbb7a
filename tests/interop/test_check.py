"""The measure that every export must pass."""

import math

import pytest
import torch

from kindgene.interop.check import TOLERANCE, checked_error, inputs_for, relative_error, some_labels


def test_the_relative_error():
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(expected + torch.tensor([0.0, 0.5]), expected) == pytest.approx(0.1)
    assert relative_error(expected, expected) == 0
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf
    assert relative_error(torch.tensor([3.0, math.nan]), expected) == math.inf
    assert relative_error(torch.ones(3), expected) == math.inf


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_more_than_rounding_is_an_error(dtype):
    expected = torch.ones(100, dtype=torch.float64)
    found = expected.to(dtype, copy=True)
    assert checked_error("it", found, expected.to(torch.promote_types(dtype, torch.float32))) == 0
    found[:] += 20 * TOLERANCE[dtype]
    with pytest.raises(ValueError, match=r"it differs from the model it was made from by .* nothing was written"):
        checked_error("it", found, expected)


def test_the_coarser_dtype_decides():
    expected = torch.ones(10, dtype=torch.float64)
    assert 0 < checked_error("it", (expected + 1e-6).float(), expected) < 1e-5
    assert 0 < checked_error("it", expected + 1e-6, expected.float()) < 1e-5


def test_labels_and_inputs_cover_what_there_is():
    assert some_labels(1, None).tolist() == [0] * 8
    assert some_labels(3, 3).tolist() == [0, 1, 2, 0, 1, 2, 3, 3]
    assert set(some_labels(100, 100).tolist()) == {0, 1, 2, 3, 4, 5, 100}
    x, t, y = inputs_for({"input_size": 8, "in_channels": 3}, some_labels(3, 3), torch.float32)
    assert x.shape == (8, 3, 8, 8)
    assert x.dtype == torch.float32
    assert (int(t[0]), int(t[-1])) == (0, 999)
    assert torch.equal(y, some_labels(3, 3))
