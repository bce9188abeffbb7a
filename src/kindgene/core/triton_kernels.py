"""Three Triton kernels of the gated product, and how they are launched (ours); `product_triton.py` is made of them.

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

Tiles follow from shapes alone and nothing is tuned by timing, so that sums have the same order in every run. They were
chosen by what the compiler says of registers and shared memory on compute capability 9.0, and never timed. Tailor
components are multiplied `CHUNK` at a time, so that zero components change no bit. Sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

CHUNK = 16
"""Tailor components multiplied at once: the least that tensor cores take."""

WIDEST = 128
"""Rows of a tile, where there are as many."""

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


def contract(
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


def expand(
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
    """Fills y [B, T, *] from h [X, G] and z [B, T, M, S]; a part is as in `contract`, y for x."""
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


def parts_of(ranks: list[int], own_ranks: list[int], features: int) -> list[tuple[int, ...]]:
    """Of each part: where its features start; its components and where they start; the same of a tailor."""
    starts = [sum(ranks[:part]) for part in range(len(ranks))]
    own_starts = [sum(own_ranks[:part]) for part in range(len(ranks))]
    places = [part * features for part in range(len(ranks))]
    return list(zip(places, ranks, starts, own_ranks, own_starts, strict=True))


def tailor_gradient(
    z: Tensor, scale: Tensor, x: Tensor, order: Tensor, starts: Tensor, own_ranks: list[int], dtype: torch.dtype
) -> Tensor:
    """The gradient [R, S, F] of tailors that met x [B, T, F] with z [B, T, M, S]; of each part, its F of x's columns.

    One part: F is all of x. `order` [B M] lists the samples row by row, `starts` [R + 1] where each row's begin.
    """
    _, tokens, width = x.shape
    features, most = width // len(own_ranks), z.shape[2]
    gradient = x.new_empty(starts.shape[0] - 1, sum(own_ranks), features, dtype=dtype)
    block_f = _fit(features, 128)
    for x_at, _, _, own_components, own_at in parts_of(own_ranks, own_ranks, features):
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
