"""Fresh tailors for new classes: the learngene frozen beside them, and what they start from.

KIND and DivControl start far-away domains from random tailors; how large, and where label rows start, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from kindgene.core.components import fill_random
from kindgene.core.config import Rank, resolve_rank
from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import State
from kindgene.pool.classes import Ranks
from kindgene.pool.config import PoolConfig
from kindgene.pool.recombine import assemble
from kindgene.pool.tailor import Tailor

TailorStart = Literal["random", "zero"]
ENERGY = 0.1
"""Entry variance of a random new tailor's matrix, as a share of the learngene's (ours)."""


def fresh_model(
    config: PoolConfig,
    learngene: State,
    names: Sequence[str],
    tailor_rank: Rank | None,
    start: TailorStart,
    generator: torch.Generator | None,
    backbone: nn.Module | None,
) -> Decomposable:
    """A model of new classes whose learngene is frozen; tailors and label rows are new and trainable."""
    if start not in ("random", "zero"):
        raise ValueError(f"start must be 'random' or 'zero', got {start!r}")
    ranks = _ranks(config, learngene, tailor_rank)
    fresh = [Tailor((name,), _empty(learngene, ranks), _null_rows(config, learngene)) for name in names]
    model = assemble(config, learngene, fresh, names, config.ranks, ranks, backbone)
    model.weights = "raw"
    _begin(model, start, generator)
    return model.freeze_learngene()


def _ranks(config: PoolConfig, learngene: State, rank: Rank | None) -> Ranks:
    """The rank asked for in every target; None: that of the pool's first class."""
    if rank is None:
        if not config.classes:
            raise ValueError("this pool has no class to take a tailor rank from: give tailor_rank")
        return config.tailor_ranks_of(next(iter(config.classes)))
    widths = {t: min(learngene[f"{t}.u"].shape[1], learngene[f"{t}.v"].shape[1]) for t in config.ranks}
    return {
        target: resolve_rank(rank, len(parts), widths[target], what="tailor_rank", name=target)
        for target, parts in config.ranks.items()
    }


def _empty(learngene: State, ranks: Ranks) -> State:
    state: State = {}
    for target, parts in ranks.items():
        for factor in "uv":
            like = learngene[f"{target}.{factor}"]
            state[f"{target}.{factor}"] = like.new_zeros(sum(parts), like.shape[1])
        state[f"{target}.s"] = learngene[f"{target}.s"].new_zeros(sum(parts))
    return state


def _null_rows(config: PoolConfig, learngene: State) -> State:
    return {table: learngene[f"{table}.null_row"].unsqueeze(0).clone() for table in config.label_tables}


@torch.no_grad()
def _begin(model: Decomposable, start: TailorStart, generator: torch.Generator | None) -> None:
    table = model.bank.tailors
    for layer in model.layers.values():
        for learngene, tailor in zip(layer.learngene(), layer.tailor(table.views(table.rows)), strict=True):
            entries = learngene.u.shape[1] * learngene.v.shape[1]
            variance = float(learngene.s.double().square().sum()) / entries  # canonical: |W|^2 / (I O)
            fill_random(tailor, ENERGY * variance if start == "random" else 0.0, tailor.rank, generator)
