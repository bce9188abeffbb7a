"""A meter gives the same for any batches, any order and any division among processes."""

import pytest
import torch

from kindgene.evaluation.features import to_pixels
from kindgene.evaluation.meter import Keep, Meter

KEEP = Keep(spatial=True, score=True, features=12)


def measured(toy, grey, batches, keep=KEEP):
    meter = Meter(toy, len(grey), keep)
    for numbers in batches:
        meter.update(to_pixels(grey.batch(numbers)), numbers)
    return meter


def check_same(found, expected):
    assert found.count == expected.count == 30
    for part in ("pooled", "spatial"):
        one, other = getattr(found, part).gaussian(), getattr(expected, part).gaussian()
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.covariance, other.covariance, rtol=1e-10, atol=1e-12)
    assert found.score.value() == pytest.approx(expected.score.value(), rel=1e-12)
    torch.testing.assert_close(found.features(), expected.features(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 30])
def test_batches_and_order_do_not_matter(toy, grey, size):
    expected = measured(toy, grey, [torch.arange(30)])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(size))
    check_same(measured(toy, grey, order.split(size)), expected)


def test_processes_merge(toy, grey):
    expected = measured(toy, grey, [torch.arange(30)])
    first, second = measured(toy, grey, torch.arange(0, 30, 2).split(4)), measured(toy, grey, [torch.arange(1, 30, 2)])
    whole = measured(toy, grey, [])
    whole.merge(first)
    whole.merge(second)
    check_same(whole, expected)
    with pytest.raises(ValueError, match="do not merge"):
        whole.merge(Meter(toy, 31, KEEP))


@pytest.mark.parametrize("kept", [1, 7, 30, 100])
def test_kept_features_are_of_evenly_spaced_images(toy, grey, kept):
    meter = measured(toy, grey, torch.arange(30).split(4), Keep(features=kept))
    everything = toy(to_pixels(grey.images)).pooled
    count = min(kept, 30)
    numbers = [number for number in range(30) if (number + 1) * count // 30 > number * count // 30]
    assert len(numbers) == count
    torch.testing.assert_close(meter.features(), everything[numbers], rtol=1e-6, atol=1e-6)


def test_nothing_but_what_was_asked_is_kept(toy, grey):
    meter = measured(toy, grey, [torch.arange(30)], Keep())
    assert (meter.spatial, meter.score, meter.features()) == (None, None, None)
    assert measured(toy, grey, [], Keep(features=3)).features().shape == (0, 6)
