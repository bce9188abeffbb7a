"""The structure of matrices kept as components: spectra, effective rank, drift, overlap, energy. Pure functions.

Shapes: R components, I in, O out, K components of a tailor, D either of I and O; a leading ``...`` is any batch (the
tailors of a matrix, say). All of it is computed from the thin factors, in float64: no [O, I] matrix is ever formed.
Components of zero, which pad a tailor to a common rank, change nothing anywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kindgene.core.components import Components, canonical

NEGLIGIBLE = 1e-10
"""A component whose singular value is at most this share of the largest gives its matrix no direction (ours)."""
_ROWS = 32


class Spaces(NamedTuple):
    """What a matrix reads and writes: orthonormal bases, and its singular values.

    `column` [..., R, O] spans what it writes (U), `row` [..., R, I] what it reads (V), `s` [..., R] descends. Basis
    rows whose singular value is negligible are zero.
    """

    column: Tensor
    row: Tensor
    s: Tensor

    @property
    def dimension(self) -> Tensor:
        """The number of directions [...]: the numerical rank."""
        return _there(self.s).sum(-1)


def spaces(components: Components) -> Spaces:
    """Singular values and singular vectors. R must not exceed min(I, O)."""
    u, s, v = canonical(components)
    there = _there(s).unsqueeze(-1)
    return Spaces(torch.where(there, u, 0.0), torch.where(there, v, 0.0), s)


def effective_rank(s: Tensor) -> Tensor:
    """exp(H(p)) [...] with p = s / sum(s), H Shannon's entropy in nats: 1 to R, R where all are equal; 0 of a zero one.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    total = s.sum(-1)
    p = s / torch.where(total > 0, total, 1.0).unsqueeze(-1)
    return torch.where(total > 0, torch.special.entr(p).sum(-1).exp(), 0.0)


def drift(rows: Tensor) -> Tensor:
    """How far directions [..., R, D] are from orthogonal: the root mean square cosine of two different ones, [...].

    That is ||N - I||_F / sqrt(R (R - 1)) with N the Gram matrix of the rows scaled to length 1, so lengths, which the
    singular values can take up, do not count. 0: orthogonal; 1: all parallel; random: about 1 / sqrt(D). Rows of zero
    have no direction and are left out; with fewer than two others it is 0. The definition is ours.
    """
    rows = rows.to(torch.float64)
    length = rows.norm(dim=-1, keepdim=True)
    unit = torch.where(length > 0, rows / torch.where(length > 0, length, 1.0), 0.0)
    cosines = unit @ unit.mT
    cosines.diagonal(dim1=-2, dim2=-1).zero_()  # not n subtracted afterwards, which would cost half the digits
    count = (length.squeeze(-1) > 0).sum(-1)
    pairs: Tensor = (count * (count - 1)).clamp(min=1)
    return (cosines.square().sum((-2, -1)) / pairs).sqrt()


def pairwise_cosines(bases_CKD: Tensor) -> Tensor:
    """Cosines [C, C, K] of the principal angles of each two of C spaces, smallest angle first.

    The singular values of Q_a Q_b^T (Bjorck and Golub 1973), all from one product: memory for (C K)^2 numbers. Basis
    rows of zero give cosines of zero, last.
    """
    count, most, _ = bases_CKD.shape
    flat_XD = bases_CKD.flatten(0, 1)
    products = (flat_XD @ flat_XD.mT).view(count, most, count, most).transpose(1, 2)
    cosines: Tensor = torch.linalg.svdvals(products.contiguous())
    return cosines.clamp(max=1.0)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared cosine [...] of the principal angles of two spaces: 0 orthogonal, 1 where one contains the other.

    ||Q_a Q_b^T||_F^2 / min(dim a, dim b) of bases [..., R, D] as in `Spaces`; NaN where a space has no direction.
    """
    smaller = torch.minimum(dimensions(a), dimensions(b))
    return _mean_of((a @ b.mT).square().sum((-2, -1)), smaller)


def pairwise_overlap(bases_CKD: Tensor) -> Tensor:
    """`overlap` [C, C] of each two of C spaces, `_ROWS` of them at a time: memory for `_ROWS` C K^2 numbers."""
    count, most, _ = bases_CKD.shape
    flat_XD = bases_CKD.flatten(0, 1)
    shared = [
        (some.flatten(0, 1) @ flat_XD.mT).square().view(len(some), most, count, most).sum((1, 3))
        for some in bases_CKD.split(_ROWS)
    ]
    size = dimensions(bases_CKD)
    return _mean_of(torch.cat(shared), torch.minimum(size.unsqueeze(0), size.unsqueeze(1)))


def random_overlap(dimension_a: Tensor, dimension_b: Tensor, size: int) -> Tensor:
    """What `overlap` is on average for random subspaces of R^size: the larger dimension / size.

    E ||Q_a Q_b^T||_F^2 = dim a dim b / size, divided by the smaller of the two; K / D for two tailors of rank K.
    """
    return torch.maximum(dimension_a, dimension_b).to(torch.float64) / size


def dimensions(basis: Tensor) -> Tensor:
    """The number [...] of basis rows [..., R, D] that are not zero."""
    return (basis != 0).any(-1).sum(-1)


def energy_share(learngene: Tensor, tailor: Tensor) -> Tensor:
    """||T||_F^2 / (||L||_F^2 + ||T||_F^2) of energies, the squared Frobenius norms; NaN of two zero matrices."""
    total = learngene + tailor
    return tailor / torch.where(total > 0, total, torch.nan)


def _mean_of(total: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def _there(s: Tensor) -> Tensor:
    return s > NEGLIGIBLE * s.amax(-1, keepdim=True)
