"""Rank-1 components of a weight matrix, as pure functions.

Shapes: R components, I in, O out; a leading ``...`` is any batch (classes, say). A component is one contiguous row
of each factor: ``u`` [..., R, O] (columns of U, stored as rows), ``s`` [..., R], ``v`` [..., R, I] (rows of V^T).
The matrix they stand for is ``W = sum_r s_r u_r v_r^T`` [..., O, I] (KIND, section 3: singular value decomposition
as a constraint on training). Everything here works on any floating dtype; decompositions run in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Components(NamedTuple):
    """Factors of one matrix (or of a batch of matrices): u [..., R, O], s [..., R], v [..., R, I]."""

    u: Tensor
    s: Tensor
    v: Tensor

    @property
    def rank(self) -> int:
        return self.s.shape[-1]

    def to(self, dtype: torch.dtype) -> Components:
        return Components(self.u.to(dtype), self.s.to(dtype), self.v.to(dtype))


def compose(components: Components) -> Tensor:
    """The matrix W [..., O, I] that the components stand for: sum_r s_r u_r v_r^T."""
    return (components.u * components.s.unsqueeze(-1)).mT @ components.v


def truncate(components: Components, rank: int) -> Components:
    """The first `rank` components; of a canonical form that is the best rank-`rank` part (Eckart-Young)."""
    u, s, v = components
    return Components(u[..., :rank, :], s[..., :rank], v[..., :rank, :])


def pad(components: Components, rank: int) -> Components:
    """The same matrix with zero components appended up to `rank` (unchanged where it has as many already)."""
    missing = rank - components.rank
    if missing < 0:
        raise ValueError(f"cannot pad {components.rank} components down to {rank}; truncate instead")
    grow = torch.nn.functional.pad
    u, s, v = components
    return Components(grow(u, (0, 0, 0, missing)), grow(s, (0, missing)), grow(v, (0, 0, 0, missing)))


def concatenate(first: Components, second: Components) -> Components:
    """Components of the sum of two matrices, exactly: one set after the other."""
    return Components(
        *(torch.cat([a, b], dim=a.dim() - (1 if a is first.s else 2)) for a, b in zip(first, second, strict=True))
    )


def canonical(components: Components) -> Components:
    """The canonical form: the same matrix; u, v orthonormal, s >= 0 and descending, largest |entry| of each u positive.

    QR of U and of V, then the SVD of the small [R, R] core, in float64 (ours; DESIGN "Canonical form"). The result is
    float64. R must not exceed min(I, O).
    """
    u, s, v = components.to(torch.float64)
    if components.rank > min(u.shape[-1], v.shape[-1]):
        raise ValueError(
            f"{components.rank} components of a {u.shape[-1]}x{v.shape[-1]} matrix have no orthonormal form"
        )
    q_u, r_u = torch.linalg.qr(u.mT)  # U = q_u r_u      [..., O, R], [..., R, R]
    q_v, r_v = torch.linalg.qr(v.mT)  # V = q_v r_v
    core = (r_u * s.unsqueeze(-2)) @ r_v.mT
    left, singular, right = torch.linalg.svd(core)
    return _fix_signs(Components((q_u @ left).mT.contiguous(), singular, right @ q_v.mT))


def from_matrix(weight_OI: Tensor, rank: int) -> Components:
    """The best `rank` components of a matrix [..., O, I], canonical, float64 (Eckart-Young; exact at full rank)."""
    u, s, vt = torch.linalg.svd(weight_OI.to(torch.float64), full_matrices=False)
    return truncate(_fix_signs(Components(u.mT.contiguous(), s, vt)), rank)


def _fix_signs(components: Components) -> Components:
    u, s, v = components
    largest = u.gather(-1, u.abs().argmax(-1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return Components(u * sign, s, v * sign)


def fill_random(components: Components, variance: float, active: int, generator: torch.Generator | None = None) -> None:
    """Fills factors in place so that a sum of `active` such components has entries of the given variance (ours).

    Every entry of u and of v is normal with variance sqrt(variance / active), s is 1: then
    Var[W_ij] = active * Var[u] * Var[v] = variance. Variance 0 gives exactly the zero matrix that still learns:
    u is zero and v (variance 1/I) is not, so u has a gradient from the first step.
    """
    u, s, v = components
    s.fill_(1.0)
    if variance == 0.0:
        u.zero_()
        v.normal_(0.0, v.shape[-1] ** -0.5, generator=generator)
        return
    std = (variance / active) ** 0.25
    u.normal_(0.0, std, generator=generator)
    v.normal_(0.0, std, generator=generator)
