"""What procedural images are painted with: a fine grid, soft shapes, smooth noise.

Images are painted on a grid of 64x64 points, many at once, and averaged down to the size asked for. x grows to
the right and y downwards, both from -1 to 1. A painter turns random numbers into images and knows neither
seeds nor sizes: `Painter` holds it with how many numbers it takes.

Shapes: N images, P random numbers an image, G grid points a side, H height, W width, L lattice points a side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kindgene.data import draws

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

GRID = 64
_TOGETHER = 64  # images painted at once, so that memory stays small

_axis: Floats = (np.arange(GRID, dtype=np.float64) + 0.5) * (2.0 / GRID) - 1.0
X: Floats = _axis[None, None, :]  # [1, 1, G]
Y: Floats = _axis[None, :, None]  # [1, G, 1]


@dataclass(frozen=True)
class Painter:
    """Paints images [N, G, G], 0 to 1, from uniform random numbers [N, `numbers`]."""

    paint: Callable[[Floats], Floats]
    numbers: int


def paint(painter: Painter, size: int, seed: int, stream: str, count: int) -> Bytes:
    """`count` images, each a function of (seed, stream, its number) alone: uint8 [N, size, size].

    `size` divides 64. What lies outside 0 to 1 is clipped.
    """
    images = np.empty((count, size, size), dtype=np.uint8)
    for first in range(0, count, _TOGETHER):
        together = min(_TOGETHER, count - first)
        painted = painter.paint(draws.uniform(seed, stream, together, painter.numbers, first=first))
        fine = GRID // size
        reduced = painted.reshape(together, size, fine, size, fine).mean(axis=(2, 4))
        images[first : first + together] = np.rint(np.clip(reduced, 0.0, 1.0) * 255.0)
    return images


class Dice:
    """Hands out the random numbers [N, P] of N images one after the other, each as [N, 1, 1]."""

    def __init__(self, u_NP: Floats) -> None:
        self._u_NP, self._used = u_NP, 0

    def span(self, low: float, high: float) -> Floats:
        """One number an image, uniform from `low` to `high`: [N, 1, 1]."""
        return low + (high - low) * self.many(1)[:, :, None]

    def sign(self) -> Floats:
        """-1 or 1: [N, 1, 1]."""
        return np.where(self.span(0.0, 1.0) < 0.5, -1.0, 1.0)

    def whole(self, low: int, high: int) -> Floats:
        """A whole number from `low` to `high`, both included: [N, 1, 1]."""
        return np.floor(self.span(low, high + 1))

    def many(self, count: int) -> Floats:
        """`count` numbers an image, from 0 to 1: [N, count]. IndexError where the painter asks for too many."""
        taken = self._u_NP[:, self._used : self._used + count]
        if taken.shape[1] < count:
            raise IndexError(f"a painter asked for more than its {self._u_NP.shape[1]} random numbers")
        self._used += count
        return taken


def turned(x: Floats, y: Floats, angle: Floats) -> tuple[Floats, Floats]:
    """Coordinates in a frame turned by `angle` (radians)."""
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def edge(distance: Floats, width: float = 0.05) -> Floats:
    """1 where `distance` is positive, 0 where it is negative, a ramp of `width` between."""
    return np.clip(distance / width + 0.5, 0.0, 1.0)


def ellipse(x: Floats, y: Floats, half_x: Floats, half_y: Floats) -> Floats:
    """A filled ellipse about the origin, 1 inside, 0 outside."""
    radius = np.sqrt((x / half_x) ** 2 + (y / half_y) ** 2)
    return edge((1.0 - radius) * np.minimum(half_x, half_y))


def smooth_noise(values_NLL: Floats) -> Floats:
    """A lattice of random values spread over the grid with smooth steps between (value noise): [N, G, G]."""
    side = values_NLL.shape[1]
    place = (_axis + 1.0) / 2.0 * (side - 1)
    low = np.minimum(place.astype(np.int64), side - 2)
    part = place - low
    part = part * part * (3.0 - 2.0 * part)
    weights_GL = np.zeros((GRID, side))
    weights_GL[np.arange(GRID), low] = 1.0 - part
    weights_GL[np.arange(GRID), low + 1] = part
    return np.asarray(weights_GL @ values_NLL @ weights_GL.T)


def cloud(dice: Dice, sides: tuple[int, ...] = (3, 5, 9, 17), fall: float = 0.55) -> Floats:
    """Noise on several scales, each `fall` times as strong as the coarser one: [N, G, G], 0 to 1.

    Takes the sum of the squares of `sides` random numbers.
    """
    total: Floats = np.zeros(())
    weight, weights = 1.0, 0.0
    for side in sides:
        total = total + weight * smooth_noise(dice.many(side * side).reshape(-1, side, side))
        weights += weight
        weight *= fall
    return total / weights
