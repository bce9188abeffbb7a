"""Figures over seeds: spread, how they are written, and what is said of two of them."""

import pytest

from kindgene.studies.spread import against, apart, at_edge, spread, spreads, told


def test_mean_least_and_most():
    assert spread([1.0, 3.0, 2.0]) == {"mean": 2.0, "least": 1.0, "most": 3.0}
    assert spreads([{"a": 1.0}, {"a": 2.0}])["a"] == {"mean": 1.5, "least": 1.0, "most": 2.0}


def test_how_it_is_written():
    assert told(spread([0.1, 0.2])) == "0.1500 (0.1000 to 0.2000)"
    assert told(spread([0.1])) == "0.1000"
    assert told(spread([0.5, 0.75]), ".1%") == "62.5% (50.0% to 75.0%)"


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ([0.9, 0.8], [1.0, 1.1], "-19.0 %, in every seed"),
        ([0.9, 1.2], [1.0, 1.0], "+5.0 %, within the spread of seeds"),
        ([1.1], [1.0], "+10.0 % (one seed)"),
        ([1.004, 1.004], [1.0, 1.0], "even (+0.4 %)"),
        ([1.0], [0.0], "+inf % (one seed)"),
    ],
)
def test_what_is_said_of_two(one, other, said):
    assert against(spread(one), spread(other), len(one)) == said


def test_apart_is_every_seed():
    assert apart(spread([1, 2]), spread([3, 4]))
    assert apart(spread([3, 4]), spread([1, 2]))
    assert not apart(spread([1, 3]), spread([3, 4]))


def test_the_edge_of_a_grid():
    grid = {"0.001": [], "0.01": [], "0.1": []}
    assert [at_edge(rate, grid) for rate in (0.001, 0.01, 0.1)] == [True, False, True]
    assert not at_edge(0.001, {"0.001": []})
