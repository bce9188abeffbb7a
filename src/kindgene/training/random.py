"""Stateless randomness: every draw is a function of (seed, purpose, global sample number).

Nothing here remembers what was drawn before, so a resumed run draws what an uninterrupted one would, and N
processes, each drawing its share of the global batch, draw what one process would. Samples are numbered from
0 over the whole run: step k of a run with global batch B consumes the numbers k*B to (k+1)*B - 1.

Source of the bits: Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), numpy's
counter-based generator. Its key is (seed, purpose); its 256-bit counter is laid out so (our own choice) that
no two samples, and no two sizes of sample, ever share a block. Only raw bits are taken from numpy, whose
streams are guaranteed for ever; its distributions are not, so the few needed here are written out.

Shapes: S samples (`count`), W 64-bit words a sample, N entries in the data set.
"""

from collections.abc import Sequence
from enum import Enum, unique
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[np.uint64]

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


def sample_indices(seed: int, first: int, count: int, dataset_size: int) -> torch.Tensor:
    """Which entries of the data set the samples `first` to `first + count - 1` are: long [S].

    Sample n is entry n % N of the permutation of epoch n // N, so every epoch shows each entry exactly once,
    and a batch may lie across epochs.
    """
    _check_samples(first, count)
    if dataset_size < 1:
        raise ValueError(f"the data set has {dataset_size} entries; at least one is needed to draw from")
    indices_S = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        epoch, start = divmod(first + done, dataset_size)
        part = _permutation(seed, epoch, dataset_size)[start : start + count - done]
        indices_S[done : done + len(part)] = part
        done += len(part)
    return torch.from_numpy(indices_S)


def timesteps(seed: int, first: int, count: int, num_steps: int) -> torch.Tensor:
    """Diffusion timesteps, uniform over 0 to `num_steps - 1`: long [S]."""
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a diffusion path has at least one step")
    words_S = _words(seed, Purpose.TIMESTEP, first, count, 1)[:, 0]
    return torch.from_numpy(_below(words_S, num_steps))


def noise(seed: int, first: int, count: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise, float32 [S, *shape].

    Box and Muller (1958) in float64: each word's halves give a radius and an angle, and these two normals.
    With 32 bits for the radius no magnitude exceeds 6.77, which a true normal does once in 7e10 draws.
    """
    size = prod(shape)
    if size < 1 or min(shape, default=1) < 1:
        raise ValueError(f"noise of shape {tuple(shape)} has no entries; every dimension must be at least 1")
    words_SW = _words(seed, Purpose.NOISE, first, count, (size + 1) // 2)
    # (k + 1/2) / 2^32 lies strictly between 0 and 1, so the logarithm is finite and never zero.
    radius_SW = np.sqrt(-2.0 * np.log(((words_SW >> np.uint64(32)) + 0.5) * 2.0**-32))
    angle_SW = (words_SW & np.uint64(0xFFFFFFFF)) * (2.0 * np.pi * 2.0**-32)
    normals_SZ = np.empty((count, 2 * words_SW.shape[1]), dtype=np.float32)
    normals_SZ[:, 0::2] = radius_SW * np.cos(angle_SW)
    normals_SZ[:, 1::2] = radius_SW * np.sin(angle_SW)
    return torch.from_numpy(np.ascontiguousarray(normals_SZ[:, :size]).reshape(count, *shape))


def uniform(seed: int, purpose: Purpose, first: int, count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24: float32 [S]. For label drop, flips and the like."""
    words_S = _words(seed, purpose, first, count, 1)[:, 0]
    return torch.from_numpy(((words_S >> np.uint64(40)) * 2.0**-24).astype(np.float32))


def step_integer(seed: int, purpose: Purpose, step: int, low: int, high: int) -> int:
    """One integer for a whole optimizer step, uniform over low <= n < high: the same on every process."""
    if step < 0:
        raise ValueError(f"the step is {step}; steps are numbered from 0")
    if low >= high:
        raise ValueError(f"there is no integer n with {low} <= n < {high}")
    return low + int(_below(_words(seed, purpose, step, 1, 1)[0], high - low)[0])


def _words(seed: int, purpose: Purpose, first: int, count: int, size: int) -> Words:
    """`size` random words for each of the samples `first` to `first + count - 1`: uint64 [S, W].

    A sample takes whole blocks, so neighbours in number are neighbours in counter and one call draws them
    all.
    """
    _check_samples(first, count)
    if not 0 <= seed < 2**64:
        raise ValueError(f"the seed is {seed}; it must be at least 0 and below 2**64")
    blocks = -(-size // _WORDS_PER_BLOCK)
    counter = (blocks << _SIZE_SHIFT) + first * blocks
    bits = np.random.Philox(counter=counter, key=np.array([seed, purpose.value], dtype=np.uint64))
    words = np.asarray(bits.random_raw(count * blocks * _WORDS_PER_BLOCK), dtype=np.uint64)
    return words.reshape(count, blocks * _WORDS_PER_BLOCK)[:, :size]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, dataset_size: int) -> npt.NDArray[np.int64]:
    """The order of one epoch, int64 [N]; kept, since the batches of an epoch all ask for it."""
    words_N = _words(seed, Purpose.ORDER, epoch, 1, dataset_size)[0]
    order_N = np.argsort(words_N, kind="stable")
    order_N.flags.writeable = False
    return order_N


def _below(words: Words, bound: int) -> npt.NDArray[np.int64]:
    """Integers 0 <= n < bound; the remainder's bias is under bound / 2^64."""
    return (words % np.uint64(bound)).astype(np.int64)


def _check_samples(first: int, count: int) -> None:
    """Refuse numbers that name no samples."""
    if first < 0 or count < 0:
        raise ValueError(f"asked for {count} samples from number {first} on; neither may be negative")
