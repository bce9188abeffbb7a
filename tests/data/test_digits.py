"""The embedded digits are the real ones."""

import torch

from kindgene.data.digits import load_digits


def test_all_digits_are_there() -> None:
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.class_names == tuple("0123456789")
    assert (digits.images.min(), digits.images.max()) == (-1.0, 1.0)
    assert list(digits.counts().values()) == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_first_is_a_zero() -> None:
    """Dark in the middle, bright around it; and every value is a whole sixteenth."""
    digits = load_digits()
    assert digits.labels[0] == 0
    zero = (digits.images[0, 0] + 1) * 8
    assert zero[1].tolist() == [0, 0, 13, 15, 10, 15, 5, 0]
    assert torch.equal(zero, zero.round())
    assert zero[3:5, 3:5].mean() < 4 < zero[2:6, 2].mean()
