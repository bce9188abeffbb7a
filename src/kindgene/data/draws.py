"""Stateless random numbers for synthetic data: each is a function of (seed, stream, item) alone.

A stream is named by a text ("glyphs/train/A"); its items are numbered from 0. So a class's images do not
depend on which other classes, or how many images, were asked for, and two splits share nothing.

Source of the bits: Philox4x64-10, laid out as in `kindgene.random`: the key is (seed, hash of the stream's
name), the counter (blocks an item takes, item), so that no two items ever share a block. Only raw bits come
from numpy, whose streams are guaranteed for ever; its distributions are not.

Shapes: N items, W words an item.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_WORDS_PER_BLOCK = 4  # Philox4x64 makes four words of one counter value
_SIZE_SHIFT = 192  # the counter's highest 64 bits hold the blocks an item takes


def words(seed: int, stream: str, count: int, size: int, *, first: int = 0) -> Words:
    """`size` random words for each of the items `first` to `first + count - 1`: uint64 [N, W].

    Raises ValueError for a seed that does not fit 64 bits, and for a negative number of items.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"the seed is {seed}; it must be at least 0 and below 2**64")
    if first < 0 or count < 0:
        raise ValueError(f"asked for {count} items from number {first} on; neither may be negative")
    blocks = -(-size // _WORDS_PER_BLOCK)
    name = int.from_bytes(hashlib.blake2b(stream.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    bits = np.random.Philox(
        counter=(blocks << _SIZE_SHIFT) + first * blocks, key=np.array([seed, name], dtype=np.uint64)
    )
    raw = np.asarray(bits.random_raw(count * blocks * _WORDS_PER_BLOCK), dtype=np.uint64)
    return raw.reshape(count, blocks * _WORDS_PER_BLOCK)[:, :size]


def uniform(seed: int, stream: str, count: int, size: int, *, first: int = 0) -> Floats:
    """Uniform numbers in [0, 1), multiples of 2^-53: float64 [N, W]. Raises ValueError as `words` does."""
    return (words(seed, stream, count, size, first=first) >> np.uint64(11)).astype(np.float64) * 2.0**-53
