"""The gated product on a CPU: one autograd function, forward and backward written by hand (ours).

Shapes: B batch, T tokens, X = B T, I in, O out, N parts of a fused matrix, G learngene components (of all parts), K
tailor components (of all parts), M tailors a sample uses, R rows of tailors at hand, Z = N M CHUNK.

It computes what `KindLinear.compose` does, and differs from it in what is read and written. The products with G
components are bound by arithmetic. All others have an inner or outer dimension of a few components, so that their cost
is the memory they touch: the tailors are added to the output in place, by products that read and write it once; q, k
and v are written where they belong in one output; singular values scale the small activations [X, G] and [B, T, Z],
never a matrix or an output; backward gathers a sample's tailors again rather than having kept them, reads the output's
gradient in place for every part and computes nothing for an input that needs no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 8
"""Tailor components multiplied at once (ours): a rank that is no multiple of it computes zeros up to the next."""

Maybe = Tensor | None


class Ranks(NamedTuple):
    """Components of each part of a fused matrix: of the learngene (None: kept dense) and of a tailor."""

    learngene: tuple[int | None, ...]
    tailor: tuple[int, ...]

    @property
    def parts(self) -> int:
        return len(self.learngene)


class GatedProduct(torch.autograd.Function):
    """y = x V_G^T diag(s_G) U_G + x W^T + b, plus each sample's sum_m a_m x V_m^T diag(s_m) U_m, part by part.

    x [B, T, I]; learngene v [G, I], s [G], u [G, O/N], dense weight [dense parts * O/N, I], bias [O]; tailors at hand
    v [R, K, I], s [R, K], u [R, K, O/N], of which `index` [B M] are used, `amount` [B, M] of each. -> [B, T, O], in
    autocast's dtype where it is on. Differentiating the gradient again raises RuntimeError.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BTI: Tensor,
        v_GI: Tensor,
        s_G: Tensor,
        u_GO: Tensor,
        weight: Maybe,
        bias_O: Maybe,
        tailor_v: Tensor,
        tailor_s: Tensor,
        tailor_u: Tensor,
        amount_BM: Tensor,
        index: Tensor,
        ranks: Ranks,
    ) -> Tensor:
        dtype = compute_dtype(x_BTI)
        with torch.autocast("cpu", enabled=False):
            x = x_BTI.to(dtype).contiguous()
            h_XG = x.flatten(0, 1) @ v_GI.to(dtype).mT
            y = _learngene(x, h_XG * s_G.to(dtype), u_GO.to(dtype), weight, bias_O, ranks)
            tailors = (tailor_v, tailor_s, tailor_u)
            own = _own(tailors, index, amount_BM, ranks, dtype)
            hidden = [torch.bmm(chunk.v, x.mT) for chunk in own]  # [B, Z, T] each, the faster way round
            for h_BZT, chunk in zip(hidden, own, strict=True):
                left = (h_BZT * chunk.scale.unsqueeze(2)).mT
                for part, h, u in zip(_parts(y, ranks), _parts(left, ranks), chunk.u.unbind(1), strict=True):
                    part.baddbmm_(h, u)
        ctx.save_for_backward(
            *(x, h_XG, v_GI, s_G, u_GO, weight, bias_O, *tailors, amount_BM, index),
            *hidden,
        )
        ctx.ranks, ctx.dtype = ranks, dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Maybe, ...]:
        saved = ctx.saved_tensors  # to be asked for once: under a checkpoint they are recomputed for it
        x, h_XG, v_GI, s_G, u_GO, weight, bias_O, *tailors, amount_BM, index = saved[:12]
        hidden, ranks, dtype = saved[12:], ctx.ranks, ctx.dtype
        need = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            gy_BTO = gy.to(dtype).contiguous()
            gy_XO, x_XI = gy_BTO.flatten(0, 1), x.flatten(0, 1)
            g_bias = gy_XO.sum(0) if bias_O is not None and need[5] else None
            s, u = s_G.to(dtype), u_GO.to(dtype)
            scratch_XG = h_XG * s
            g_u = _learngene_u_gradient(scratch_XG, gy_XO, u_GO, ranks) if need[3] else None
            gx_XI = g_v = g_s = g_weight = None
            if need[0] or need[1] or need[2]:
                gh_XG = _learngene_h_gradient(gy_XO, u, ranks)
                g_s = torch.mul(gh_XG, h_XG, out=scratch_XG).sum(0) if need[2] else None
                gh_XG.mul_(s)
                g_v = gh_XG.mT @ x_XI if need[1] else None
                gx_XI = gh_XG @ v_GI.to(dtype) if need[0] else None
            if weight is not None:
                gx_XI, g_weight = _dense_gradients(gx_XI, x_XI, gy_XO, weight.to(dtype), ranks, need[4])
            gx_BTI = None if gx_XI is None else gx_XI.view_as(x)
            if any((need[0], *need[6:10])):
                own = _own(tuple(tailors), index, amount_BM, ranks, dtype)
                found = [
                    _chunk_gradients(gx_BTI, x, h, gy_BTO, chunk, amount_BM, ranks, any(need[6:10]))
                    for h, chunk in zip(hidden, own, strict=True)
                ]
            g_tailors: list[Maybe] = [None, None, None]
            g_amount: Maybe = None
            if any(need[6:10]):
                gs_v, gs_s, gs_u, gs_amount = zip(*found, strict=True)
                g_amount = sum(gs_amount) if need[9] else None
                for place, (chunks, tailor) in enumerate(zip((gs_v, gs_s, gs_u), tailors, strict=True)):
                    g_tailors[place] = _scatter(chunks, tailor, index, ranks) if need[6 + place] else None
        return (gx_BTI, g_v, g_s, g_u, g_weight, g_bias, *g_tailors, g_amount, None, None)


class _Own(NamedTuple):
    """A chunk of each sample's own tailors: v [B, Z, I], u [B, N, M CHUNK, O/N], s [B, N, M, CHUNK], scale [B, Z]."""

    v: Tensor
    u: Tensor
    s: Tensor
    scale: Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a product with `x` is computed in: autocast's dtype where that is on, as for torch's own products."""
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def _parts(values: Tensor, ranks: Ranks) -> tuple[Tensor, ...]:
    """The last dimension cut into the views of each part."""
    return values.chunk(ranks.parts, dim=-1)


def _slices(ranks: Ranks) -> list[slice | None]:
    """Where each part's components stand in the learngene; None for a part kept dense."""
    places: list[slice | None] = []
    start = 0
    for rank in ranks.learngene:
        places.append(None if rank is None else slice(start, start + rank))
        start += rank or 0
    return places


def _learngene(x: Tensor, h_XG: Tensor, u_GO: Tensor, weight: Maybe, bias_O: Maybe, ranks: Ranks) -> Tensor:
    """The learngene's output [B, T, O] of scaled h."""
    x_XI, dtype = x.flatten(0, 1), x.dtype
    y_XO = x.new_empty(x_XI.shape[0], ranks.parts * u_GO.shape[1])
    dense = iter(() if weight is None else weight.to(dtype).split(u_GO.shape[1]))
    biases = [None] * ranks.parts if bias_O is None else bias_O.to(dtype).chunk(ranks.parts)
    for y, place, bias in zip(_parts(y_XO, ranks), _slices(ranks), biases, strict=True):
        left, right = (x_XI, next(dense).mT) if place is None else (h_XG[:, place], u_GO[place])
        if bias is None:
            torch.mm(left, right, out=y)
        else:
            torch.addmm(bias, left, right, out=y)
    return y_XO.view(*x.shape[:2], -1)


def _learngene_u_gradient(h_XG: Tensor, gy_XO: Tensor, u_GO: Tensor, ranks: Ranks) -> Tensor:
    g_u = torch.empty_like(u_GO, dtype=gy_XO.dtype)
    for gy, place in zip(_parts(gy_XO, ranks), _slices(ranks), strict=True):
        if place is not None:
            torch.mm(h_XG[:, place].mT, gy, out=g_u[place])
    return g_u


def _learngene_h_gradient(gy_XO: Tensor, u_GO: Tensor, ranks: Ranks) -> Tensor:
    """The gradient [X, G] of scaled h."""
    gh_XG = gy_XO.new_empty(gy_XO.shape[0], u_GO.shape[0])
    for gy, place in zip(_parts(gy_XO, ranks), _slices(ranks), strict=True):
        if place is not None:
            torch.mm(gy, u_GO[place].mT, out=gh_XG[:, place])
    return gh_XG


def _dense_gradients(
    gx_XI: Maybe, x_XI: Tensor, gy_XO: Tensor, weight: Tensor, ranks: Ranks, need_weight: bool
) -> tuple[Maybe, Maybe]:
    """Adds the gradient through dense parts to that of x in place; and the gradient of their matrices."""
    dense = iter(weight.split(gy_XO.shape[1] // ranks.parts))
    g_weights = []
    for gy, place in zip(_parts(gy_XO, ranks), _slices(ranks), strict=True):
        if place is None:
            matrix = next(dense)
            if gx_XI is not None:
                gx_XI.addmm_(gy, matrix)
            if need_weight:
                g_weights.append(gy.mT @ x_XI)
    return gx_XI, torch.cat(g_weights) if need_weight else None


def _own(tailors: tuple[Tensor, ...], index: Tensor, amount_BM: Tensor, ranks: Ranks, dtype: torch.dtype) -> list[_Own]:
    """Each sample's own tailors, a chunk of components at a time.

    All products have the same shape whatever K is, so a tailor padded with zero components gives the same bits: the
    order in which a matrix product sums depends on its shape.
    """
    v, s, u = tailors
    shape = (amount_BM.shape[0], amount_BM.shape[1])
    pieces = (_chunks(piece, index, ranks, shape, dtype) for piece in (v, s.unsqueeze(-1), u))
    amount = amount_BM.to(dtype)[:, None, :, None]
    return [
        _Own(v.flatten(1, 3), u.flatten(2, 3), s.squeeze(-1), (s.squeeze(-1) * amount).flatten(1))
        for v, s, u in zip(*pieces, strict=True)
    ]


def _chunks(
    piece: Tensor, index: Tensor, ranks: Ranks, batch_most: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    """Rows of a piece [R, K, F] gathered as contiguous [B, N, M, CHUNK, F], each part zero-padded to whole chunks."""
    most = max(ranks.tailor)
    padded = -(-most // CHUNK) * CHUNK
    rows = piece.index_select(0, index)
    if padded == most == min(ranks.tailor):
        wide = rows.to(dtype).view(-1, ranks.parts, most, piece.shape[2])
    else:
        wide = rows.new_zeros(len(index), ranks.parts, padded, piece.shape[2], dtype=dtype)
        if most == min(ranks.tailor):  # the usual case: one copy for all parts
            wide[:, :, :most] = rows.unflatten(1, (ranks.parts, most))
        else:
            for part, (own, rank) in enumerate(zip(rows.split(ranks.tailor, dim=1), ranks.tailor, strict=True)):
                wide[:, part, :rank] = own
    wide = wide.unflatten(0, batch_most).transpose(1, 2)
    return [chunk.contiguous() for chunk in wide.split(CHUNK, dim=3)] if padded > CHUNK else [wide.contiguous()]


def _chunk_gradients(
    gx_BTI: Maybe, x: Tensor, h_BZT: Tensor, gy_BTO: Tensor, own: _Own, amount_BM: Tensor, ranks: Ranks, need_own: bool
) -> tuple[Maybe, Maybe, Maybe, Maybe]:
    """Adds the gradient through the tailors to that of x in place; and of a chunk: v, s, u as in `_Own`, amount."""
    gys = _parts(gy_BTO, ranks)
    gh_BZT = _join([torch.bmm(u, gy.mT) for u, gy in zip(own.u.unbind(1), gys, strict=True)])
    gs_v = gs_s = gs_u = gs_amount = None
    if need_own:
        g_scale = (gh_BZT * h_BZT).sum(2).view_as(own.s)  # [B, N, M, CHUNK]
        gs_s = g_scale * amount_BM.to(g_scale.dtype)[:, None, :, None]
        gs_amount = (g_scale * own.s).sum((1, 3))
        left = (h_BZT * own.scale.unsqueeze(2)).chunk(ranks.parts, dim=1)
        gs_u = _join([torch.bmm(h, gy) for h, gy in zip(left, gys, strict=True)])
    gh_BZT.mul_(own.scale.unsqueeze(2))
    if need_own:
        gs_v = torch.bmm(gh_BZT, x)
    if gx_BTI is not None:
        gx_BTI.baddbmm_(gh_BZT.mT, own.v)
    return gs_v, gs_s, gs_u, gs_amount


def _join(parts: list[Tensor]) -> Tensor:
    """Side by side in dimension 1; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _scatter(chunks: Sequence[Tensor], tailor: Tensor, index: Tensor, ranks: Ranks) -> Tensor:
    """Sums gradients of what was gathered, as in `_Own`, into those of the rows [R, K, F] (or [R, K]) at hand."""
    batch, features = chunks[0].shape[0], tailor.shape[2:]
    whole = [chunk.view(batch, ranks.parts, -1, CHUNK, *features).transpose(1, 2) for chunk in chunks]
    wide = whole[0] if len(whole) == 1 else torch.cat(whole, dim=3)  # [B, M, N, K, F]
    own = _join([part[:, :, :rank].flatten(0, 1) for part, rank in zip(wide.unbind(2), ranks.tailor, strict=True)])
    return tailor.new_zeros(tailor.shape).index_add_(0, index, own.to(tailor.dtype).contiguous())
