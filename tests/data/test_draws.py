"""Random numbers are a function of (seed, stream, item) alone, on every machine."""

import numpy as np
import pytest

from kindgene.data import draws


def test_words_are_pinned() -> None:
    """A change here changes every glyph and every shift set."""
    assert draws.words(7, "glyphs/train/A", 2, 2).tolist() == [
        [4372560194131110415, 1966818406272021929],
        [11692338854491347634, 3390829315853418013],
    ]


def test_an_item_does_not_depend_on_the_others() -> None:
    whole = draws.words(3, "stream", 9, 6)
    assert whole.shape == (9, 6)
    assert np.array_equal(whole[4:7], draws.words(3, "stream", 3, 6, first=4))
    assert len(np.unique(whole)) == whole.size


def test_seeds_streams_and_sizes_share_nothing() -> None:
    drawn = [draws.words(*key) for key in ((0, "a", 50, 4), (1, "a", 50, 4), (0, "b", 50, 4), (0, "a", 50, 5))]
    assert len(np.unique(np.concatenate([words.ravel() for words in drawn]))) == sum(words.size for words in drawn)


def test_uniform_fills_zero_to_one_evenly() -> None:
    numbers = draws.uniform(0, "stream", 5000, 2)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    shares = np.histogram(numbers, bins=10, range=(0, 1))[0] / numbers.size
    assert np.abs(shares - 0.1).max() < 0.01
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 0.05


def test_unfit_requests_are_refused() -> None:
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=f"the seed is {seed}"):
            draws.words(seed, "stream", 1, 1)
    with pytest.raises(ValueError, match="neither may be negative"):
        draws.uniform(0, "stream", -1, 1)
