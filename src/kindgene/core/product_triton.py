"""The gated product on a GPU: an operator of three Triton kernels, forward and backward (ours).

Shapes: B batch, T tokens, X = B T, I in, O out, N parts of a fused matrix, G learngene components (of all parts), S
tailor components (of all parts), M tailors a sample uses, Z = M S, R rows of tailors at hand, F features (I or O/N).

`triton_kernels.py` says why there are kernels, and how they read and write. What is left to cuBLAS: the learngene's
weight gradients [G, I] and [G, O/N]. They sum over all X, which a kernel of ours would have to split and add up just as
cuBLAS does; joined with `contract` they would save one reading of gy, at the price of atomic additions. The bias'
gradient is torch's own sum, which a compiler fuses with whatever made gy. Singular values scale the small matrices [G,
F] outside, where autograd differentiates them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import triton_op

from kindgene.core.triton_kernels import contract, expand, parts_of, tailor_gradient

ALIGNED = 16
"""Each part's components begin and end at a multiple of this: elsewhere h could be read a number at a time only."""

FEWEST_TOKENS = 16
"""Samples of fewer tokens would leave most of a tensor core's rows empty: torch's own products are better there."""

Maybe = Tensor | None


@triton_op("kindgene::gated_product", mutates_args=())
def _forward(
    x: Tensor,
    v: Tensor,
    u: Tensor,
    bias: Maybe,
    own_v: Tensor,
    own_u: Tensor,
    scale: Tensor,
    rows: Tensor,
    ranks: list[int],
    own_ranks: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, T, O], x V_G^T as h [X, G], and x V_c^T as z [B, T, M, S]."""
    samples, tokens, _ = x.shape
    h = x.new_empty(samples * tokens, v.shape[0])
    z = x.new_empty(samples, tokens, rows.shape[1], own_v.shape[1])
    y = x.new_empty(samples, tokens, len(ranks) * u.shape[1])
    contract(x, v, own_v, rows, h, z, [(0, sum(ranks), 0, sum(own_ranks), 0)])
    expand(h, u, z, scale, own_u, rows, bias, y, parts_of(ranks, own_ranks, u.shape[1]))
    return y, h, z


@triton_op("kindgene::gated_product_gradient", mutates_args=())
def _gradient(
    gy: Tensor,
    v: Tensor,
    u: Tensor,
    own_v: Tensor,
    own_u: Tensor,
    scale: Tensor,
    rows: Tensor,
    ranks: list[int],
    own_ranks: list[int],
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of h [X, G]; gy U_c^T as gz [B, T, M, S], not scaled; the gradient of x [B, T, I] where needed."""
    samples, tokens, _ = gy.shape
    gh = gy.new_empty(samples * tokens, u.shape[0])
    gz = gy.new_empty(samples, tokens, rows.shape[1], own_u.shape[1])
    gx = gy.new_empty(samples, tokens if need_x else 0, v.shape[1])
    contract(gy, u, own_u, rows, gh, gz, parts_of(ranks, own_ranks, u.shape[1]))
    if need_x:
        expand(gh, v, gz, scale, own_v, rows, None, gx, [(0, sum(ranks), 0, sum(own_ranks), 0)])
    return gh, gz, gx


@triton_op("kindgene::tailor_gradient", mutates_args=())
def _own_gradient(
    z: Tensor, scale: Tensor, x: Tensor, order: Tensor, starts: Tensor, own_ranks: list[int], dtype: torch.dtype
) -> Tensor:
    """`tailor_gradient` as an operator."""
    return tailor_gradient(z, scale, x, order, starts, own_ranks, dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, v, u, bias, own_v, own_u, scale, rows, ranks, own_ranks = inputs
    _, h, z = output
    ctx.mark_non_differentiable(h, z)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, v, u, own_v, own_u, scale, rows, h, z)
    ctx.ranks, ctx.own_ranks, ctx.has_bias = ranks, own_ranks, bias is not None


@once_differentiable
def _backward(ctx: Any, gy: Maybe, *_: Any) -> tuple[Maybe, ...]:
    if gy is None:
        return (None,) * 10
    x, v, u, own_v, own_u, scale, rows, h, z = ctx.saved_tensors
    need_x, need_v, need_u, need_bias, need_own_v, need_own_u, need_scale = ctx.needs_input_grad[:7]
    ranks, own_ranks, device = ctx.ranks, ctx.own_ranks, x.device.type
    with torch.autocast(device, enabled=False):
        gy = gy.contiguous()
        gy_XO, x_XI = gy.flatten(0, 1), x.flatten(0, 1)
        g_bias = gy_XO.sum(0) if ctx.has_bias and need_bias else None
        g_u = None
        if need_u:
            pairs = zip(h.split(ranks, dim=1), gy_XO.chunk(len(ranks), dim=1), strict=True)
            g_u = torch.cat([h_XG.mT @ gy_part for h_XG, gy_part in pairs])
        g_x = g_v = g_own_v = g_own_u = g_scale = None
        if need_x or need_v or need_own_v or need_scale:
            gh, gz, gx = _gradient(gy, v, u, own_v, own_u, scale, rows, ranks, own_ranks, need_x)
            g_x = gx if need_x else None
            g_v = gh.mT @ x_XI if need_v else None
            g_scale = (z.float() * gz.float()).sum(1).to(scale.dtype) if need_scale else None
        if need_own_v or need_own_u:
            order, starts = _grouped(rows, own_v.shape[0])
        if need_own_v:
            g_own_v = _own_gradient(gz, scale, x, order, starts, [sum(own_ranks)], own_v.dtype)
        if need_own_u:
            g_own_u = _own_gradient(z, scale, gy, order, starts, own_ranks, own_u.dtype)
    return g_x, g_v, g_u, g_bias, g_own_v, g_own_u, g_scale, None, None, None


def _grouped(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Entries of `rows` [B, M] ordered by row, closed ones (-1) last, and where each of `count` rows begins [R + 1].

    A compiler finds it the same in every layer and computes it once.
    """
    key = torch.where(rows < 0, count, rows).flatten()
    key, order = torch.sort(key, stable=True)
    return order, torch.searchsorted(key, torch.arange(count + 1, device=key.device))


_forward.register_autograd(_backward, setup_context=_save)


def takes(x_BTI: Tensor) -> bool:
    """Whether the kernels are the fastest for this input: numbers of 16 bits, samples of 16 tokens and more.

    In float32 an H100's 67 TFLOP/s take 0.32 ms for the arithmetic of the layer above and its memory 0.08: cuBLAS's
    products rule, and the passes between them are small.
    """
    return _compute_dtype(x_BTI) in (torch.bfloat16, torch.float16) and x_BTI.shape[1] >= FEWEST_TOKENS


def gated_product(
    x_BTI: Tensor,
    v_GI: Tensor,
    s_G: Tensor,
    u_GO: Tensor,
    bias_O: Maybe,
    tailor_v: Tensor,
    tailor_s: Tensor,
    tailor_u: Tensor,
    amount_BM: Tensor,
    index_BM: Tensor,
    ranks: tuple[int, ...],
    tailor_ranks: tuple[int, ...],
) -> Tensor:
    """y = x V_G^T diag(s_G) U_G + b, plus each sample's sum_m a_m x V_m^T diag(s_m) U_m, part by part.

    x [B, T, I]; learngene v [G, I], s [G], u [G, O/N], bias [O]; tailors at hand v [R, S, I], s [R, S], u [R, S, O/N],
    of which `index` [B, M] are used, `amount` [B, M] of each. -> [B, T, O], in autocast's dtype where it is on. An
    amount of 0 reads nothing. Differentiating the gradient again raises RuntimeError.
    """
    dtype = _compute_dtype(x_BTI)
    # An index out of range is an error here, before a kernel reads what lies there.
    scale = tailor_s.index_select(0, index_BM.flatten()).view(*index_BM.shape, -1) * amount_BM.unsqueeze(-1)
    rows = torch.where(amount_BM != 0, index_BM, -1)
    padded = [triton.cdiv(rank, ALIGNED) * ALIGNED for rank in ranks]
    y_BTO: Tensor = _forward(
        x_BTI.to(dtype).contiguous(),
        _padded(v_GI.to(dtype), ranks, padded),
        _padded((u_GO * s_G.unsqueeze(1)).to(dtype), ranks, padded),
        None if bias_O is None else bias_O.to(dtype),
        _rows_in_order(tailor_v),
        _rows_in_order(tailor_u),
        scale.contiguous(),
        rows,
        padded,
        list(tailor_ranks),
    )[0]
    return y_BTO


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where that is on, as for torch's own products."""
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else x.dtype


def _padded(factor_GF: Tensor, ranks: tuple[int, ...], padded: list[int]) -> Tensor:
    """Each part's components followed by zero ones up to its padded rank."""
    parts = zip(factor_GF.split(list(ranks)), ranks, padded, strict=True)
    wide = [F.pad(part, (0, 0, 0, whole - rank)) if whole > rank else part for part, rank, whole in parts]
    return wide[0].contiguous() if len(wide) == 1 else torch.cat(wide)


def _rows_in_order(tailor: Tensor) -> Tensor:
    """The tailors [R, S, F], each row contiguous in itself, as the bank's are; else a copy."""
    return tailor if tailor.stride()[1:] == (tailor.shape[2], 1) else tailor.contiguous()
