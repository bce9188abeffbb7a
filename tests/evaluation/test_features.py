"""What extractors see: bytes, as a picture would show them."""

import numpy as np
import pytest
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation.features import batches_of, to_pixels, to_rgb


def test_samples_are_rounded_as_dits_are():
    x = torch.linspace(-1.2, 1.2, 5000)
    expected = torch.clamp(127.5 * x + 128.0, 0, 255).to(torch.uint8)  # DiT's sample_ddp.py
    assert torch.equal(to_pixels(x), expected)
    nearest = np.rint((x.clamp(-1, 1).double().numpy() + 1) * 127.5)
    assert np.abs(to_pixels(x).numpy() - nearest).max() <= 1  # at halves alone, where numpy goes to the even one
    assert (to_pixels(x).numpy() == nearest).mean() > 0.99


def test_what_came_from_bytes_comes_back():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(pixels.float() / 127.5 - 1.0), pixels)
    assert to_pixels(pixels) is pixels


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="diverged"):
        to_pixels(torch.tensor([0.0, torch.nan]))


def test_grey_becomes_three_equal_channels():
    grey = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert torch.equal(to_rgb(grey), torch.cat([grey] * 3, 1))
    colour = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert torch.equal(to_rgb(colour), colour)
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 4\)"):
        to_rgb(torch.zeros(2, 4, 4, 4))


def test_a_data_set_comes_in_order(grey: ArrayDataset):
    parts = list(batches_of(grey, 7))
    assert [len(numbers) for _, numbers in parts] == [7, 7, 7, 7, 2]
    assert torch.equal(torch.cat([numbers for _, numbers in parts]), torch.arange(30))
    assert torch.equal(torch.cat([pixels for pixels, _ in parts]), to_pixels(grey.images))
