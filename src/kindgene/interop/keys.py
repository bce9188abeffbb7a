"""Our DiT's parameters under diffusers' names, and back.

diffusers keeps q, k and v apart, and an own time and label embedder in every block; it makes the positions itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

TRANSFORMER, SCHEDULER, VAE = "transformer", "scheduler", "vae"
"""Folders of a pipeline."""

POSITIONS = "pos_embed"
QKV = "attn1.to_{}"

_OUTSIDE: Mapping[str, str] = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_IN_BLOCK: Mapping[str, str] = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
# One of ours stands for one in every block of diffusers'.
_IN_EVERY_BLOCK: Mapping[str, str] = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}


def diffusers_keys(key: str, depth: int) -> list[list[str]]:
    """diffusers' keys for one of ours: a list of places that hold the same; each a list of parts to join (q, k, v)."""
    module, _, leaf = key.rpartition(".")
    if key == POSITIONS:
        return []
    if module in _OUTSIDE:
        return [[f"{_OUTSIDE[module]}.{leaf}"]]
    if module in _IN_EVERY_BLOCK:
        return [[f"transformer_blocks.{block}.{_IN_EVERY_BLOCK[module]}.{leaf}"] for block in range(depth)]
    _, block, inner = module.split(".", 2)
    place = f"transformer_blocks.{block}"
    if inner == "attn.qkv":
        return [[f"{place}.{QKV.format(part)}.{leaf}" for part in "qkv"]]
    return [[f"{place}.{_IN_BLOCK[inner]}.{leaf}"]]


def to_diffusers_state(state: Mapping[str, Tensor], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Our DiT's state under diffusers' keys, each a tensor of its own; the positions are left out."""
    for key, value in state.items():
        for parts in diffusers_keys(key, depth):
            yield from zip(parts, torch.chunk(value.clone(), len(parts)), strict=True)
