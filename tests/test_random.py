"""Stateless randomness: the same draws however the samples are grouped, and each purpose on its own."""

import time

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from kindgene.random import Purpose, noise, sample_indices, step_integer, timesteps, uniform

SEEDS = st.integers(0, 2**64 - 1)
FIRST = st.integers(0, 2**40)

DRAWS_BY_NUMBER = {
    "indices": lambda seed, numbers: sample_indices(seed, numbers, 97),
    "timesteps": lambda seed, numbers: timesteps(seed, numbers, 1000),
    "noise": lambda seed, numbers: noise(seed, numbers, (1, 3, 5)),
    "label drop": lambda seed, numbers: uniform(seed, Purpose.LABEL_DROP, numbers),
    "flip": lambda seed, numbers: uniform(seed, Purpose.FLIP, numbers),
}
DRAWS = {
    name: lambda seed, first, count, draw=draw: draw(seed, range(first, first + count))
    for name, draw in DRAWS_BY_NUMBER.items()
}


@pytest.mark.parametrize("name", DRAWS)
@given(seed=SEEDS, first=FIRST, sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_a_range_is_the_concatenation_of_its_parts(name: str, seed: int, first: int, sizes: list[int]) -> None:
    draw = DRAWS[name]
    starts = [first + sum(sizes[:part]) for part in range(len(sizes))]
    parts = [draw(seed, start, size) for start, size in zip(starts, sizes, strict=True)]
    whole = draw(seed, first, sum(sizes))
    assert torch.equal(whole, torch.cat(parts))
    assert len(whole) == sum(sizes)


@pytest.mark.parametrize("name", DRAWS_BY_NUMBER)
@given(seed=SEEDS, numbers=st.lists(st.integers(0, 60), max_size=12))
def test_any_numbers_are_drawn_as_in_a_range(name: str, seed: int, numbers: list[int]) -> None:
    draw = DRAWS_BY_NUMBER[name]
    chosen = torch.tensor(numbers, dtype=torch.int64)
    assert torch.equal(draw(seed, chosen), draw(seed, range(61))[chosen])


@pytest.mark.parametrize("name", DRAWS)
def test_seeds_and_samples_differ(name: str) -> None:
    draw = DRAWS[name]
    base = draw(0, 0, 97)
    assert torch.equal(base, draw(0, 0, 97))
    assert not torch.equal(base, draw(1, 0, 97))
    assert not torch.equal(base, draw(2**64 - 1, 0, 97))
    assert not torch.equal(base, draw(0, 97, 97))


@given(seed=SEEDS, epoch=st.integers(0, 10**9), size=st.integers(1, 300))
def test_every_epoch_shows_each_entry_once(seed: int, epoch: int, size: int) -> None:
    entries = sample_indices(seed, range(epoch * size, (epoch + 1) * size), size)
    assert torch.equal(entries.sort().values, torch.arange(size))


def test_epochs_are_ordered_independently() -> None:
    first, second = sample_indices(0, range(2000), 1000).reshape(2, 1000).numpy()
    assert np.mean(first == second) < 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


def test_a_callers_change_does_not_reach_later_draws() -> None:
    before = sample_indices(3, range(10), 10).clone()
    sample_indices(3, range(10), 10).zero_()
    assert torch.equal(sample_indices(3, range(10), 10), before)


def test_purposes_and_seeds_are_independent() -> None:
    streams = [uniform(seed, purpose, range(20_000)).numpy() for seed in (0, 1, 2) for purpose in Purpose]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_sizes_of_sample_share_no_draws() -> None:
    small, large = (set(noise(0, range(64), shape).flatten().tolist()) for shape in ((8,), (16,)))
    assert len(small) > 500
    assert len(small & large) < 5


def test_samples_do_not_overlap() -> None:
    draws = noise(0, range(512), (1, 8, 8)).flatten()
    assert len(draws.unique()) > 0.999 * len(draws)


def test_noise_is_standard_normal() -> None:
    draws = noise(11, range(500), (4, 10, 10)).double().flatten().numpy()
    assert draws.shape == (200_000,)
    assert scipy.stats.kstest(draws, "norm").pvalue > 0.001
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.01
    assert abs(scipy.stats.kurtosis(draws)) < 0.05
    # The two normals of one word, and the same place in neighbouring samples.
    assert abs(np.corrcoef(draws[0::2], draws[1::2])[0, 1]) < 0.015
    assert abs(np.corrcoef(draws[0::2] ** 2, draws[1::2] ** 2)[0, 1]) < 0.015
    assert abs(np.corrcoef(draws[:-400], draws[400:])[0, 1]) < 0.015


def test_uniform_and_timesteps_are_uniform() -> None:
    draws = uniform(5, Purpose.LABEL_DROP, range(100_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert scipy.stats.kstest(draws.numpy(), "uniform").pvalue > 0.001
    counts = torch.bincount(timesteps(5, range(100_000), 100), minlength=100)
    assert counts.shape == (100,)
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 0.001


@given(seed=SEEDS, step=FIRST, low=st.integers(-50, 50), width=st.integers(1, 50))
def test_step_integers_keep_their_range(seed: int, step: int, low: int, width: int) -> None:
    assert low <= step_integer(seed, Purpose.ELASTIC_RANK, step, low, low + width) < low + width


def test_step_integers_reach_every_value() -> None:
    drawn = [step_integer(0, Purpose.ELASTIC_RANK, step, 3, 7) for step in range(200)]
    assert set(drawn) == {3, 4, 5, 6}


@pytest.mark.parametrize("shape", [(), (1,), (4, 32, 32)])
def test_shapes_and_types(shape: tuple[int, ...]) -> None:
    assert noise(0, range(3), shape).shape == (3, *shape)
    assert noise(0, range(3), shape).dtype == uniform(0, Purpose.FLIP, range(3)).dtype == torch.float32
    assert timesteps(0, range(3), 10).dtype == sample_indices(0, range(3), 10).dtype == torch.int64


def test_purposes_keep_their_values() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "ORDER": 1,
        "TIMESTEP": 2,
        "NOISE": 3,
        "LABEL_DROP": 4,
        "FLIP": 5,
        "CROP": 6,
        "ELASTIC_RANK": 7,
        "POSTERIOR": 8,
        "GLOBAL_STATE": 9,
        "GRID": 10,
    }


def test_golden_values() -> None:
    """A change here changes every run and breaks every resume."""
    assert sample_indices(7, range(5, 13), 10).tolist() == [1, 8, 9, 5, 3, 2, 9, 3]
    assert timesteps(7, range(5, 9), 1000).tolist() == [625, 429, 213, 118]
    assert uniform(7, Purpose.FLIP, range(5, 8)).tolist() == [
        0.009167850017547607,
        0.40982478857040405,
        0.7720193266868591,
    ]
    assert [step_integer(7, Purpose.ELASTIC_RANK, step, 1, 9) for step in range(6)] == [3, 3, 6, 6, 5, 3]
    golden = [[0.8136914968, 0.9174757004, -0.0268307943], [-0.8188906312, 0.1597978324, 0.4113928676]]
    torch.testing.assert_close(noise(7, range(5, 7), (3,)), torch.tensor(golden), rtol=1e-6, atol=0)


def test_a_batch_costs_little() -> None:
    """All of a demo step's draws, the fastest of twenty, in seconds: a step itself takes 0.15 or more."""
    fastest = float("inf")
    for step in range(20):
        start = time.perf_counter()
        numbers = range(step * 128, (step + 1) * 128)
        sample_indices(0, numbers, 1797)
        timesteps(0, numbers, 1000)
        noise(0, numbers, (1, 8, 8))
        uniform(0, Purpose.LABEL_DROP, numbers)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 0.005


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: sample_indices(0, range(-1, 3), 10), "asked for sample number -1"),
        (lambda: timesteps(0, torch.tensor([4, -2]), 10), "asked for sample number -2"),
        (lambda: timesteps(0, torch.tensor([0.5]), 10), "are float32 of shape"),
        (lambda: timesteps(0, torch.tensor([[1]]), 10), "of shape \\(1, 1\\)"),
        (lambda: sample_indices(0, range(4), 0), "has 0 entries"),
        (lambda: timesteps(0, range(1), 0), "num_steps is 0"),
        (lambda: noise(0, range(1), (3, 0)), r"shape \(3, 0\)"),
        (lambda: noise(0, range(1), (-1, -2)), r"shape \(-1, -2\)"),
        (lambda: uniform(-1, Purpose.FLIP, range(1)), "the seed is -1"),
        (lambda: uniform(2**64, Purpose.FLIP, range(1)), "below 2"),
        (lambda: step_integer(0, Purpose.ELASTIC_RANK, -1, 0, 2), "the step is -1"),
        (lambda: step_integer(0, Purpose.ELASTIC_RANK, 0, 2, 2), "2 <= n < 2"),
    ],
)
def test_refusals(draw: object, message: str) -> None:
    assert callable(draw)
    with pytest.raises(ValueError, match=message):
        draw()
