"""How much alike two glyphs look, measured on their renderings. The measure is our own.

A glyph is drawn in all twelve faces, centred and brought to one size, and averaged within six groups: Sans,
Mono and Serif, upright and slanted, then blurred. Two glyphs are as alike as the correlation of these pictures,
the best over 31 ways of laying one on the other: as it is, or shrunk by one of six factors and moved up or down
within the space that this leaves. Sizes fall together (A and superscript A), and so do scripts (Latin, Greek,
Cyrillic A); the shrinking makes a letter meet itself under its accent.

Shapes: N glyphs, G groups of faces, S pixels a side, F features.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kindgene.data.faces import FACES, glyph_mask, place

SIDE = 24  # pixels
EXTENT = 0.75  # share of the picture that a glyph's longer side takes
BLUR = 1.0  # pixels, a Gaussian's standard deviation: forgives strokes that lie a little apart
SHRINK = (1.1, 1.2, 1.3, 1.4, 1.5, 1.65)
UP_DOWN = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the space that shrinking leaves
GROUPS = 6

# Features are rounded to integers of this norm. Their products then stay below 2^23, which float32 adds without any
# rounding, in whatever order: the similarity does not depend on threads or on the linear algebra library.
_NORM = 2047.0

Matrix = npt.NDArray[np.float32]


def similarities(code_points: Sequence[int]) -> npt.NDArray[np.float64]:
    """The similarity of every pair: float64 [N, N], symmetric, at most 1, 1 on the diagonal."""
    pictures_NGSS = _on_both_axes(_blur(), mean_pictures(code_points), _blur())
    plain_NF = _features(pictures_NGSS)
    best_NN = plain_NF @ plain_NF.T
    for factor in SHRINK:
        space = (1 - 1 / factor) * EXTENT * SIDE / 2
        for down in UP_DOWN:
            shrunk_NGSS = _on_both_axes(_shrink(factor, down * space), pictures_NGSS, _shrink(factor, 0.0))
            np.maximum(best_NN, plain_NF @ _features(shrunk_NGSS).T, out=best_NN)
    similar_NN: npt.NDArray[np.float64] = np.maximum(best_NN, best_NN.T) / np.float64(_NORM**2)
    np.fill_diagonal(similar_NN, 1.0)
    return np.minimum(similar_NN, 1.0)


def mean_pictures(code_points: Sequence[int]) -> Matrix:
    """Each glyph's mean picture in each group of faces: float32 [N, G, S, S], 0 to 1."""
    pictures = np.zeros((len(code_points), GROUPS, SIDE, SIDE), dtype=np.float32)
    for glyph, point in enumerate(code_points):
        for index, face in enumerate(FACES):
            pictures[glyph, _group(index)] += np.asarray(place(glyph_mask(face, point), SIDE, EXTENT))
    return np.asarray(pictures / (255 * len(FACES) // GROUPS), dtype=np.float32)


def _group(face: int) -> int:
    """The group of a face: four faces a family, in the order upright, slanted, bold, bold slanted."""
    return face // 4 * 2 + face % 2


def _features(pictures_NGSS: Matrix) -> Matrix:
    """Pictures as integer vectors of mean 0 and norm 2047, so that a product is a correlation: float32 [N, F]."""
    flat_NF = pictures_NGSS.reshape(len(pictures_NGSS), -1).astype(np.float64)
    flat_NF -= flat_NF.mean(axis=1, keepdims=True)
    flat_NF *= _NORM / np.linalg.norm(flat_NF, axis=1, keepdims=True)
    return np.asarray(np.rint(flat_NF), dtype=np.float32)


def _on_both_axes(down_SS: Matrix, pictures_NGSS: Matrix, across_SS: Matrix) -> Matrix:
    """Applies a matrix to the rows' axis and one to the columns': [N, G, S, S]."""
    return np.asarray(down_SS @ pictures_NGSS @ across_SS.T, dtype=np.float32)


def _blur() -> Matrix:
    """Blurs one axis: [S, S]."""
    apart = np.arange(SIDE)[:, None] - np.arange(SIDE)
    weight = np.exp(-0.5 * (apart / BLUR) ** 2)
    return np.asarray(weight / weight.sum(axis=1).max(), dtype=np.float32)


def _shrink(factor: float, move: float) -> Matrix:
    """Shrinks one axis towards its centre and moves it by `move` pixels, linear interpolation: [S, S]."""
    centre = (SIDE - 1) / 2
    origin = (np.arange(SIDE) - centre - move) * factor + centre
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(origin[:, None] - np.arange(SIDE))), dtype=np.float32)
