"""The gated product on a GPU: three Triton kernels, forward and backward (ours).

Shapes: B batch, T tokens, X = B T, I in, O out, N parts of a fused matrix, G learngene components (of all parts), S
tailor components (of all parts), M tailors a sample uses, Z = M S, R rows of tailors at hand, F features (I or O/N).

Why kernels. Take the widest layer of DiT-B/4 at batch 256 in bfloat16: X = 16,384, I = 768, O = 3,072, G = 168, S = 4.
Forward is 21 GFLOP, 0.02 ms of an H100's 989 TFLOP/s; x and y are 25 and 101 MB, 0.04 ms of its 3.35 TB/s. So the
layer is bound by memory, and a pass over y costs more than the arithmetic. Torch's own operations write y for the
learngene, read and write it again for the tailors, and read x twice: 352 MB against 126. Hence

- `_contract` reads x once: x V_G^T and each sample's own x V_c^T are tiles of one launch, close to each other in time,
  so that the second finds x in the L2 cache; what it writes, [X, G + Z], is a twentieth of x and y;
- `_expand` writes y once: learngene, tailors and bias meet in one accumulator;
- backward is the same two the other way round: gy U^T is a contraction, and an expansion of it x's gradient;
- `_tailor_gradient` sums over the samples of a row in their order: no atomic additions, the same bits every time, and a
  row that no sample uses is written as zeros;
- tailors are read from the bank's rows where they lie, in the bank's dtype: no gathered copy, no padding, no pass of
  casting. A closed gate (row -1) reads none.

What is left to cuBLAS: the learngene's weight gradients [G, I] and [G, O/N]. They sum over all X, which a kernel of
ours would have to split and add up just as cuBLAS does; joined with `_contract` they would save one reading of gy, at
the price of atomic additions. The bias' gradient is torch's own sum, which a compiler fuses with whatever made gy.
Singular values scale the small matrices [G, F] outside, where autograd differentiates them.

Tiles follow from shapes alone and nothing is tuned by timing, so that sums have the same order in every run. They were
chosen by what the compiler says of registers and shared memory on compute capability 9.0, and never timed. Tailor
components are multiplied `CHUNK` at a time, so that zero components change no bit. Sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import triton_op, wrap_triton

CHUNK = 16
"""Tailor components multiplied at once: the least that tensor cores take."""

WIDEST = 128
"""Rows of a tile, where there are as many."""

ALIGNED = 16
"""Each part's components begin and end at a multiple of this: elsewhere h could be read a number at a time only."""

FEWEST_TOKENS = 16
"""Samples of fewer tokens would leave most of a tensor core's rows empty: torch's own products are better there."""

Maybe = Tensor | None


@triton.jit
def _contract(
    x_ptr,
    shared_ptr,
    own_ptr,
    row_ptr,
    h_ptr,
    z_ptr,
    samples,
    tokens,
    features,
    x_stride,
    x_at,
    components,
    components_at,
    h_stride,
    own_components,
    own_at,
    own_stride,
    own_width,
    most,
    BLOCK_X: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """h[:, at:] = x shared^T and z = x own^T, of one part; x [X, F] is columns x_at: of a wider matrix.

    Programs come in groups, one a tile of rows: its learngene tiles, then an even share of the samples' own tiles.
    """
    rows = samples * tokens
    groups = tl.cdiv(rows, BLOCK_X)
    columns = tl.cdiv(components, BLOCK_G)
    token_tiles = tl.cdiv(tokens, BLOCK_T)
    own_columns = most * tl.cdiv(own_components, CHUNK)
    own_tiles = samples * token_tiles * own_columns
    share = tl.cdiv(own_tiles, groups)
    group = tl.program_id(0) // (columns + share)
    turn = tl.program_id(0) % (columns + share)
    f = tl.arange(0, BLOCK_F)
    if turn < columns:
        first = (group * BLOCK_X).to(tl.int64)
        place = tl.arange(0, BLOCK_X)
        in_rows = group * BLOCK_X + place < rows
        g = turn * BLOCK_G + tl.arange(0, BLOCK_G)
        x_tile_ptr = x_ptr + first * x_stride + x_at + place[:, None] * x_stride
        shared_tile_ptr = shared_ptr + components_at * features + g[None, :] * features
        total = tl.zeros((BLOCK_X, BLOCK_G), tl.float32)
        for start in range(0, features, BLOCK_F):
            inner = start + f
            x = tl.load(x_tile_ptr + inner[None, :], in_rows[:, None] & (inner < features)[None, :], 0.0)
            v = tl.load(shared_tile_ptr + inner[:, None], (g < components)[None, :] & (inner < features)[:, None], 0.0)
            total = tl.dot(x, v, total, input_precision="ieee")
        h_tile_ptr = h_ptr + first * h_stride + components_at + place[:, None] * h_stride + g[None, :]
        tl.store(h_tile_ptr, total.to(h_ptr.dtype.element_ty), in_rows[:, None] & (g < components)[None, :])
    else:
        number = group * share + turn - columns
        if number < own_tiles:
            column = number % own_columns
            tile = number // own_columns
            m = column % most
            k = (column // most) * CHUNK + tl.arange(0, CHUNK)
            sample = tile // token_tiles
            first_token = (tile % token_tiles) * BLOCK_T
            first = sample.to(tl.int64) * tokens + first_token
            place = tl.arange(0, BLOCK_T)
            in_rows = first_token + place < tokens
            row = tl.load(row_ptr + sample * most + m)
            total = tl.zeros((BLOCK_T, CHUNK), tl.float32)
            if row >= 0:
                x_tile_ptr = x_ptr + first * x_stride + x_at + place[:, None] * x_stride
                own_tile_ptr = own_ptr + row * own_stride + own_at * features + k[None, :] * features
                for start in range(0, features, BLOCK_F):
                    inner = start + f
                    x = tl.load(x_tile_ptr + inner[None, :], in_rows[:, None] & (inner < features)[None, :], 0.0)
                    v = tl.load(
                        own_tile_ptr + inner[:, None],
                        (k < own_components)[None, :] & (inner < features)[:, None],
                        0.0,
                    )
                    total = tl.dot(x, v.to(x_ptr.dtype.element_ty), total, input_precision="ieee")
            z_tile_ptr = (
                z_ptr + (first * most + m) * own_width + own_at + place[:, None] * most * own_width + k[None, :]
            )
            tl.store(z_tile_ptr, total.to(z_ptr.dtype.element_ty), in_rows[:, None] & (k < own_components)[None, :])


@triton.jit
def _expand(
    h_ptr,
    shared_ptr,
    z_ptr,
    scale_ptr,
    own_ptr,
    row_ptr,
    bias_ptr,
    y_ptr,
    samples,
    tokens,
    features,
    y_stride,
    y_at,
    components,
    components_at,
    h_stride,
    own_components,
    own_at,
    own_stride,
    own_width,
    most,
    HAS_BIAS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_G: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """y = h shared + (z scale) own + bias, of one part; y [X, F] is columns y_at: of a wider matrix.

    A tile of rows may hold several samples, or a piece of one: own components are added sample by sample.
    """
    rows = samples * tokens
    columns = tl.cdiv(features, BLOCK_F)
    start_x = (tl.program_id(0) // columns) * BLOCK_X
    first = start_x.to(tl.int64)
    place = tl.arange(0, BLOCK_X)
    f = (tl.program_id(0) % columns) * BLOCK_F + tl.arange(0, BLOCK_F)
    in_rows = start_x + place < rows
    in_features = f < features
    dtype = y_ptr.dtype.element_ty
    h_tile_ptr = h_ptr + first * h_stride + components_at + place[:, None] * h_stride
    shared_tile_ptr = shared_ptr + components_at * features + f[None, :]
    total = tl.zeros((BLOCK_X, BLOCK_F), tl.float32)
    for start in range(0, components, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        in_shared = g < components
        h = tl.load(h_tile_ptr + g[None, :], in_rows[:, None] & in_shared[None, :], 0.0)
        u = tl.load(shared_tile_ptr + g[:, None] * features, in_shared[:, None] & in_features[None, :], 0.0)
        total = tl.dot(h, u, total, input_precision="ieee")
    owner = (start_x + place) // tokens
    last = (tl.minimum(start_x + BLOCK_X, rows) - 1) // tokens
    z_tile_ptr = z_ptr + first * most * own_width + own_at + place[:, None] * most * own_width
    for sample in range(start_x // tokens, last + 1):
        for m in range(0, most):
            row = tl.load(row_ptr + sample * most + m)
            if row >= 0:
                for start in range(0, own_components, CHUNK):
                    k = start + tl.arange(0, CHUNK)
                    in_own = k < own_components
                    scale = tl.load(scale_ptr + (sample * most + m) * own_width + own_at + k, in_own, 0.0)
                    z = tl.load(
                        z_tile_ptr + m * own_width + k[None, :],
                        (in_rows & (owner == sample))[:, None] & in_own[None, :],
                        0.0,
                    )
                    u = tl.load(
                        own_ptr + row * own_stride + own_at * features + k[:, None] * features + f[None, :],
                        in_own[:, None] & in_features[None, :],
                        0.0,
                    )
                    scaled = z.to(tl.float32) * scale.to(tl.float32)[None, :]
                    total = tl.dot(scaled.to(dtype), u.to(dtype), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + y_at + f, in_features, 0.0).to(tl.float32)[None, :]
    y_tile_ptr = y_ptr + first * y_stride + y_at + place[:, None] * y_stride + f[None, :]
    tl.store(y_tile_ptr, total.to(dtype), in_rows[:, None] & in_features[None, :])


@triton.jit
def _tailor_gradient(
    z_ptr,
    scale_ptr,
    x_ptr,
    order_ptr,
    start_ptr,
    gradient_ptr,
    tokens,
    features,
    x_stride,
    x_at,
    own_components,
    own_at,
    own_width,
    most,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """gradient[r] = sum over the samples of row r of (z scale)^T x, of one part; `order` lists a row's samples."""
    columns = tl.cdiv(features, BLOCK_F)
    chunks = tl.cdiv(own_components, CHUNK)
    f = (tl.program_id(0) % columns) * BLOCK_F + tl.arange(0, BLOCK_F)
    k = (tl.program_id(0) // columns % chunks) * CHUNK + tl.arange(0, CHUNK)
    row = tl.program_id(0) // columns // chunks
    in_own = k < own_components
    in_features = f < features
    dtype = x_ptr.dtype.element_ty
    total = tl.zeros((CHUNK, BLOCK_F), tl.float32)
    for turn in range(tl.load(start_ptr + row), tl.load(start_ptr + row + 1)):
        entry = tl.load(order_ptr + turn)  # sample * most + m
        scale = tl.load(scale_ptr + entry * own_width + own_at + k, in_own, 0.0).to(tl.float32)
        first = entry // most * tokens  # int64, as entry is
        z_tile_ptr = z_ptr + (first * most + entry % most) * own_width + own_at + k[:, None]
        x_tile_ptr = x_ptr + first * x_stride + x_at + f[None, :]
        for start in range(0, tokens, BLOCK_T):
            token = start + tl.arange(0, BLOCK_T)
            in_tokens = token < tokens
            z = tl.load(z_tile_ptr + token[None, :] * most * own_width, in_own[:, None] & in_tokens[None, :], 0.0)
            x = tl.load(x_tile_ptr + token[:, None] * x_stride, in_tokens[:, None] & in_features[None, :], 0.0)
            scaled = z.to(tl.float32) * scale[:, None]
            total = tl.dot(scaled.to(dtype), x, total, input_precision="ieee")
    tile_ptr = gradient_ptr + (row.to(tl.int64) * own_width + own_at) * features + k[:, None] * features + f[None, :]
    tl.store(tile_ptr, total.to(gradient_ptr.dtype.element_ty), in_own[:, None] & in_features[None, :])


def _launch(kernel: Any, programs: int) -> Any:
    """The kernel on a grid of so many programs; a compiler sees it as such and launches it by itself."""
    visible = wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel  # interpreted
    return visible[(programs,)]


def _fit(size: int, most: int) -> int:
    """The power of two from 16 to `most` that holds `size`, or `most`."""
    return min(most, max(16, 1 << (size - 1).bit_length()))


def _component_block(components: int) -> int:
    """The wider of the two tiles, unless the narrower computes fewer columns beyond the last component."""
    wide, narrow = _fit(components, 128), _fit(components, 64)
    return wide if triton.cdiv(components, wide) * wide <= triton.cdiv(components, narrow) * narrow else narrow


def _contracted(
    x: Tensor, shared: Tensor, own: Tensor, rows: Tensor, h: Tensor, z: Tensor, parts: list[tuple[int, ...]]
) -> None:
    """Fills h [X, G] and z [B, T, M, S] from x [B, T, *]; a part is (x_at, components, at, own components, at)."""
    samples, tokens, width = x.shape
    features, most = shared.shape[1], z.shape[2]
    for x_at, components, components_at, own_components, own_at in parts:
        block_g, block_t = _component_block(components), _fit(tokens, 64)
        groups = triton.cdiv(samples * tokens, WIDEST)
        own_tiles = samples * triton.cdiv(tokens, block_t) * most * triton.cdiv(own_components, CHUNK)
        programs = groups * (triton.cdiv(components, block_g) + triton.cdiv(own_tiles, groups))
        _launch(_contract, programs)(
            *(x, shared, own, rows, h, z, samples, tokens, features, width, x_at),
            *(components, components_at, h.shape[1], own_components, own_at, own.stride(0), own.shape[1], most),
            BLOCK_X=_fit(samples * tokens, WIDEST),
            BLOCK_G=block_g,
            BLOCK_T=block_t,
            BLOCK_F=_fit(features, 64 if x.element_size() == 2 else 32),
            CHUNK=CHUNK,
            num_warps=8 if block_g == 128 else 4,
            num_stages=3,
        )


def _expanded(
    h: Tensor,
    shared: Tensor,
    z: Tensor,
    scale: Tensor,
    own: Tensor,
    rows: Tensor,
    bias: Maybe,
    y: Tensor,
    parts: list[tuple[int, ...]],
) -> None:
    """Fills y [B, T, *] from h [X, G] and z [B, T, M, S]; a part is as in `_contracted`, y for x."""
    samples, tokens, width = y.shape
    features, most = shared.shape[1], z.shape[2]
    block_x, block_f = _fit(samples * tokens, WIDEST), _fit(features, 256 if y.element_size() == 2 else 128)
    for y_at, components, components_at, own_components, own_at in parts:
        programs = triton.cdiv(samples * tokens, block_x) * triton.cdiv(features, block_f)
        _launch(_expand, programs)(
            *(h, shared, z, scale, own, rows, y if bias is None else bias, y, samples, tokens, features, width, y_at),
            *(components, components_at, h.shape[1], own_components, own_at, own.stride(0), own.shape[1], most),
            HAS_BIAS=bias is not None,
            BLOCK_X=block_x,
            BLOCK_F=block_f,
            BLOCK_G=_fit(components, 64 if y.element_size() == 2 else 32),
            CHUNK=CHUNK,
            num_warps=8,
            num_stages=3,
        )


def _parts(ranks: list[int], own_ranks: list[int], features: int) -> list[tuple[int, ...]]:
    """Of each part: where its features start; its components and where they start; the same of a tailor."""
    starts = [sum(ranks[:part]) for part in range(len(ranks))]
    own_starts = [sum(own_ranks[:part]) for part in range(len(ranks))]
    places = [part * features for part in range(len(ranks))]
    return list(zip(places, ranks, starts, own_ranks, own_starts, strict=True))


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
    _contracted(x, v, own_v, rows, h, z, [(0, sum(ranks), 0, sum(own_ranks), 0)])
    _expanded(h, u, z, scale, own_u, rows, bias, y, _parts(ranks, own_ranks, u.shape[1]))
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
    _contracted(gy, u, own_u, rows, gh, gz, _parts(ranks, own_ranks, u.shape[1]))
    if need_x:
        _expanded(gh, v, gz, scale, own_v, rows, None, gx, [(0, sum(ranks), 0, sum(own_ranks), 0)])
    return gh, gz, gx


@triton_op("kindgene::tailor_gradient", mutates_args=())
def _own_gradient(
    z: Tensor, scale: Tensor, x: Tensor, order: Tensor, starts: Tensor, own_ranks: list[int], dtype: torch.dtype
) -> Tensor:
    """The gradient [R, S, F] of tailors that met x [B, T, F] with z [B, T, M, S]; of each part, its F of x's columns.

    One part: F is all of x. `order` [B M] lists the samples row by row, `starts` [R + 1] where each row's begin.
    """
    _, tokens, width = x.shape
    features, most = width // len(own_ranks), z.shape[2]
    gradient = x.new_empty(starts.shape[0] - 1, sum(own_ranks), features, dtype=dtype)
    block_f = _fit(features, 128)
    for x_at, _, _, own_components, own_at in _parts(own_ranks, own_ranks, features):
        programs = gradient.shape[0] * triton.cdiv(own_components, CHUNK) * triton.cdiv(features, block_f)
        _launch(_tailor_gradient, programs)(
            *(z, scale, x, order, starts, gradient, tokens, features, width, x_at),
            *(own_components, own_at, gradient.shape[1], most),
            BLOCK_T=_fit(tokens, 64),
            BLOCK_F=block_f,
            CHUNK=CHUNK,
            num_warps=4,
            num_stages=3,
        )
    return gradient


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
