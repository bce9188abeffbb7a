"""Stateless randomness: every draw is a function of (seed, purpose, global sample number).

Nothing here remembers what was drawn before, so a resumed run draws what an uninterrupted one would, and N
processes, each drawing its share of the global batch, draw what one process would. Samples are numbered from
0 over the whole run: step k of a run with global batch B consumes the numbers k*B to (k+1)*B - 1. Any numbers can be
drawn, in any order; neighbours cost least.

Source of the bits: Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), numpy's
counter-based generator. Its key is (seed, purpose); its 256-bit counter is laid out so (our own choice) that
no two samples, and no two sizes of sample, ever share a block. Only raw bits are taken from numpy, whose
streams are guaranteed for ever; its distributions are not, so the few needed here are written out.

Shapes: S samples (`numbers`), W 64-bit words a sample, N entries in the data set.
"""

from collections.abc import Sequence
from enum import Enum, unique
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[np.uint64]
Numbers = range | torch.Tensor | npt.NDArray[np.int64]
"""Global sample numbers: a range, or int64 [S]."""

_WORDS_PER_BLOCK = 4  # Philox4x64 makes four words of one counter value
_SIZE_SHIFT = 192  # the counter's highest 64 bits hold the blocks a sample takes


@unique
class Purpose(Enum):
    """What a draw is for: one independent stream each.

    The values are part of every run, past ones too: never change or reuse one.
    """

    ORDER = 1
    TIMESTEP = 2
    NOISE = 3
    LABEL_DROP = 4
    FLIP = 5
    CROP = 6
    ELASTIC_RANK = 7
    POSTERIOR = 8
    GLOBAL_STATE = 9
    GRID = 10


def sample_indices(seed: int, numbers: Numbers, dataset_size: int) -> torch.Tensor:
    """Which entries of the data set these samples are: long [S].

    Sample n is entry n % N of the permutation of epoch n // N, so every epoch shows each entry exactly once,
    and a batch may lie across epochs.
    """
    if dataset_size < 1:
        raise ValueError(f"the data set has {dataset_size} entries; at least one is needed to draw from")
    numbers_S = _checked(numbers)
    indices_S = np.empty(len(numbers_S), dtype=np.int64)
    epoch_S = numbers_S // dataset_size
    for epoch in np.unique(epoch_S).tolist():
        mine_S = epoch_S == epoch
        indices_S[mine_S] = _permutation(seed, epoch, dataset_size)[numbers_S[mine_S] % dataset_size]
    return torch.from_numpy(indices_S)


def timesteps(seed: int, numbers: Numbers, num_steps: int) -> torch.Tensor:
    """Diffusion timesteps, uniform over 0 to `num_steps - 1`: long [S]."""
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a diffusion path has at least one step")
    words_S = _words(seed, Purpose.TIMESTEP, numbers, 1)[:, 0]
    return torch.from_numpy(_below(words_S, num_steps))


def noise(seed: int, numbers: Numbers, shape: Sequence[int], purpose: Purpose = Purpose.NOISE) -> torch.Tensor:
    """Standard normal noise, float32 [S, *shape].

    Box and Muller (1958) in float64: each word's halves give a radius and an angle, and these two normals.
    With 32 bits for the radius no magnitude exceeds 6.77, which a true normal does once in 7e10 draws.
    """
    size = prod(shape)
    if size < 1 or min(shape, default=1) < 1:
        raise ValueError(f"noise of shape {tuple(shape)} has no entries; every dimension must be at least 1")
    words_SW = _words(seed, purpose, numbers, (size + 1) // 2)
    # (k + 1/2) / 2^32 lies strictly between 0 and 1, so the logarithm is finite and never zero.
    radius_SW = np.sqrt(-2.0 * np.log(((words_SW >> np.uint64(32)) + 0.5) * 2.0**-32))
    angle_SW = (words_SW & np.uint64(0xFFFFFFFF)) * (2.0 * np.pi * 2.0**-32)
    normals_SZ = np.empty((len(words_SW), 2 * words_SW.shape[1]), dtype=np.float32)
    normals_SZ[:, 0::2] = radius_SW * np.cos(angle_SW)
    normals_SZ[:, 1::2] = radius_SW * np.sin(angle_SW)
    return torch.from_numpy(np.ascontiguousarray(normals_SZ[:, :size]).reshape(len(words_SW), *shape))


def uniform(seed: int, purpose: Purpose, numbers: Numbers) -> torch.Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24: float32 [S]. For label drop, flips and the like."""
    words_S = _words(seed, purpose, numbers, 1)[:, 0]
    return torch.from_numpy(((words_S >> np.uint64(40)) * 2.0**-24).astype(np.float32))


def step_integer(seed: int, purpose: Purpose, step: int, low: int, high: int) -> int:
    """One integer for a whole optimizer step, uniform over low <= n < high: the same on every process."""
    if step < 0:
        raise ValueError(f"the step is {step}; steps are numbered from 0")
    if low >= high:
        raise ValueError(f"there is no integer n with {low} <= n < {high}")
    return low + int(_below(_words(seed, purpose, range(step, step + 1), 1)[0], high - low)[0])


def _words(seed: int, purpose: Purpose, numbers: Numbers, size: int) -> Words:
    """`size` random words for each of the samples: uint64 [S, W].

    A sample takes whole blocks, so neighbours in number are neighbours in counter and one call draws a run of them.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"the seed is {seed}; it must be at least 0 and below 2**64")
    blocks = -(-size // _WORDS_PER_BLOCK)
    key = np.array([seed, purpose.value], dtype=np.uint64)
    numbers_S = _checked(numbers)
    words = np.empty((len(numbers_S), blocks * _WORDS_PER_BLOCK), dtype=np.uint64)
    done = 0
    for run in np.split(numbers_S, np.flatnonzero(np.diff(numbers_S) != 1) + 1):
        if not len(run):
            continue
        bits = np.random.Philox(counter=(blocks << _SIZE_SHIFT) + int(run[0]) * blocks, key=key)
        words[done : done + len(run)] = bits.random_raw(words[0].size * len(run)).reshape(len(run), -1)
        done += len(run)
    return words[:, :size]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, dataset_size: int) -> npt.NDArray[np.int64]:
    """The order of one epoch, int64 [N]; kept, since the batches of an epoch all ask for it."""
    words_N = _words(seed, Purpose.ORDER, range(epoch, epoch + 1), dataset_size)[0]
    order_N = np.argsort(words_N, kind="stable")
    order_N.flags.writeable = False
    return order_N


def _below(words: Words, bound: int) -> npt.NDArray[np.int64]:
    """Integers 0 <= n < bound; the remainder's bias is under bound / 2^64."""
    return (words % np.uint64(bound)).astype(np.int64)


def _checked(numbers: Numbers) -> npt.NDArray[np.int64]:
    """Sample numbers as int64 [S]; refuses numbers that name no samples."""
    if isinstance(numbers, range):
        numbers_S = np.arange(numbers.start, numbers.stop, numbers.step, dtype=np.int64)
    else:
        numbers_S = np.asarray(numbers)
    if numbers_S.dtype != np.int64 or numbers_S.ndim != 1:
        raise ValueError(f"sample numbers are {numbers_S.dtype} of shape {numbers_S.shape}; expected int64 [S]")
    if len(numbers_S) and numbers_S.min() < 0:
        raise ValueError(f"asked for sample number {numbers_S.min()}; samples are numbered from 0")
    return numbers_S
