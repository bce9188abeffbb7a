"""The parts of DiT (Peebles and Xie, arXiv 2212.09748): embedders, the adaLN-Zero block, the final layer.

Shapes: B batch, C channels, H height, W width, T tokens (row by row), D hidden size, F time frequencies, p
patch size, h heads. Attribute names are the state-dict keys of the public DiT checkpoints.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FREQUENCIES = 256
MAX_PERIOD = 10_000.0
NORM_EPS = 1e-6


def time_features(t_B: Tensor, frequencies: str, size: int = TIME_FREQUENCIES) -> Tensor:
    """Cosines, then sines, of `t` at size/2 frequencies from 1 down towards 1/10000; float32 [B, size].

    `"dit"` divides the exponent by size/2 = 128 as the public DiT does, `"diffusers"` by size/2 - 1 = 127 as
    diffusers does. The two are different functions of `t`: weights trained with one are wrong with the other.
    """
    half = size // 2
    divisor = half if frequencies == "dit" else half - 1
    steps = torch.arange(half, dtype=torch.float32, device=t_B.device)
    angles_BF = t_B[:, None].float() * torch.exp(-math.log(MAX_PERIOD) * steps / divisor)
    return torch.cat([angles_BF.cos(), angles_BF.sin()], dim=-1)


def grid_positions(size: int, grid: int) -> Tensor:
    """The fixed 2-D sine-cosine table, float32 [1, grid^2, size]: half D for the column, half for the row."""
    place = torch.arange(grid, dtype=torch.float64)
    omega = MAX_PERIOD ** -(torch.arange(size // 4, dtype=torch.float64) / (size / 4))
    angles = place[:, None] * omega  # [grid, D/4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)  # [grid, D/2]
    column_TD, row_TD = waves.repeat(grid, 1), waves.repeat_interleave(grid, dim=0)
    return torch.cat([column_TD, row_TD], dim=-1)[None].float()


def modulate(x_BTD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Adaptive layer norm's second half: a scale around one and a shift, the same for every token."""
    return x_BTD * (1 + scale_BD[:, None]) + shift_BD[:, None]


class PatchEmbedder(nn.Module):
    """Each p x p patch becomes one token."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, T, D]."""
        return cast(Tensor, self.proj(x_BCHW).flatten(2).transpose(1, 2))


class TimestepEmbedder(nn.Module):
    """A timestep becomes a vector: fixed waves, then a two-layer MLP."""

    def __init__(self, hidden_size: int, frequencies: str) -> None:
        super().__init__()
        self.frequencies = frequencies
        first, second = nn.Linear(TIME_FREQUENCIES, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)

    def forward(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        """[B] -> [B, D]. The waves are made in float32: bfloat16 cannot tell 999 from 1000."""
        return cast(Tensor, self.mlp(time_features(t_B, self.frequencies).to(dtype)))


class LabelEmbedder(nn.Module):
    """A label becomes a vector. Labels are never dropped here: that is the training loss's to do."""

    def __init__(self, rows: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, hidden_size)

    def forward(self, y_B: Tensor) -> Tensor:
        """[B] -> [B, D]."""
        return cast(Tensor, self.embedding_table(y_B))


class Attention(nn.Module):
    """Multi-head self-attention over the tokens, with q, k and v from one matrix."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, h, D/h]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x [B, h, T, D/h]
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, h, T, D/h]
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two layers with a tanh-approximated GELU between them."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x_BTD), approximate="tanh")))


class DiTBlock(nn.Module):
    """A transformer block whose norms are shifted, scaled and gated by the condition (adaLN-Zero).

    Its modulation starts at zero, gates included, so it starts as the identity. `mlp_norm_eps` is that of the norm
    before the MLP alone (diffusers can set no other).
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, mlp_norm_eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=NORM_EPS)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=mlp_norm_eps)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c_BD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], under the condition `c`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c_BD).chunk(6, dim=-1)  # 6 x [B, D]
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))  # [B, T, D]
        x = x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))  # [B, T, D]
        return x


class FinalLayer(nn.Module):
    """Tokens become patches of the output."""

    def __init__(self, hidden_size: int, patch_values: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=NORM_EPS)
        self.linear = nn.Linear(hidden_size, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x_BTD: Tensor, c_BD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, p p C]."""
        shift, scale = self.adaLN_modulation(c_BD).chunk(2, dim=-1)  # 2 x [B, D]
        return cast(Tensor, self.linear(modulate(self.norm_final(x_BTD), shift, scale)))
