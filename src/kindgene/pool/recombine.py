"""Learngene and chosen tailors, put together into a model again.

`assemble` makes a decomposable model of whole pieces (trainable). `gated_model` and `plain_model` carry out a `Plan`:
a static model behind its gate, or one class folded into a plain backbone of ordinary ``nn.Linear`` layers, single or in
thin pairs, that needs nothing of the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from kindgene.core.components import Components, compose, pad, truncate
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import Pieces, State, join, layer_components, with_components
from kindgene.pool.backbones import build_backbone, floating_dtype
from kindgene.pool.classes import Ranks
from kindgene.pool.config import PoolConfig
from kindgene.pool.cost import Rank
from kindgene.pool.parts import Part, widest_ranks
from kindgene.pool.plan import Plan
from kindgene.pool.tailor import Tailor, tailors_by_class


def assemble(
    config: PoolConfig,
    learngene: State,
    tailors: Sequence[Tailor],
    classes: Sequence[str],
    ranks: Ranks,
    tailor_ranks: Ranks,
    backbone: nn.Module | None = None,
) -> Decomposable:
    """A decomposable model of exactly these classes, in this order, holding these tensors, which have these ranks."""
    tailor_of = tailors_by_class(tailors)
    used = list(dict.fromkeys(tailor_of[name] for name in classes))  # in the order in which the classes ask for them
    kind = KindConfig(
        num_classes=len(classes),
        learngene_rank=ranks,
        tailor_rank=tailor_ranks,
        targets=[_literal(name) for name in ranks],
        fused={_literal(name): len(parts) for name, parts in ranks.items() if len(parts) > 1},
        class_rows=[_literal(name) for name in config.label_tables],
        label_argument=config.label_argument,
        gate_map=[used.index(tailor_of[name]) for name in classes],
        init="random",
    )
    dtype = floating_dtype(learngene)
    module = build_backbone(
        config.backbone, config.backbone_config, classes, config.label_tables, backbone, dtype=dtype
    )
    model = make_decomposable(module, kind, filled=False)
    rows = [tailor_of[name].row_of(name) for name in classes]
    join(model, Pieces(learngene, [tailor.components for tailor in used], rows))
    model.class_names = tuple(classes)
    model.weights = cast(Literal["raw", "ema"], config.weights)
    return model


def whole_model(
    config: PoolConfig,
    learngene: State,
    tailors: Sequence[Tailor],
    classes: Sequence[str],
    backbone: nn.Module | None = None,
) -> Decomposable:
    """A decomposable model of these classes with all components that the pool has."""
    widest = widest_ranks(config, tailors)
    padded = [_with_ranks(config, tailor, widest) for tailor in tailors]
    return assemble(config, learngene, padded, classes, config.ranks, widest, backbone)


def gated_model(
    config: PoolConfig, learngene: State, tailors: Sequence[Tailor], plan: Plan, backbone: nn.Module | None = None
) -> Decomposable:
    """The model behind its gate that a plan describes."""
    cut, cut_tailors, ranks = cut_to(config, learngene, tailors, plan)
    model = assemble(config, cut, cut_tailors, plan.classes, ranks, dict(plan.tailor_ranks), backbone)
    for target, layer in model.layers.items():
        dense = [index for index, rank in enumerate(plan.ranks[target]) if rank is None]
        if dense:
            layer.keep_dense(dense)
    return model


def cut_to(
    config: PoolConfig, learngene: State, tailors: Sequence[Tailor], plan: Plan
) -> tuple[State, list[Tailor], Ranks]:
    """Learngene and tailors with the components that a gated plan keeps; dense parts keep all of theirs."""
    ranks: Ranks = {
        target: tuple(have if rank is None else rank for have, rank in zip(parts, plan.ranks[target], strict=True))
        for target, parts in config.ranks.items()
    }
    return _resized(learngene, config.ranks, ranks), [_with_ranks(config, t, plan.tailor_ranks) for t in tailors], ranks


def plain_model(
    config: PoolConfig,
    learngene: State,
    tailor: Tailor,
    parts: Sequence[Part],
    plan: Plan,
    backbone: nn.Module | None = None,
) -> nn.Module:
    """The plain model of one class that a plan describes, out of its merged `parts`: no gate, no null class."""
    dtype = floating_dtype(learngene)
    low_rank = {target: ranks for target, ranks in plan.ranks.items() if any(rank is not None for rank in ranks)}
    module = build_backbone(
        config.backbone,
        config.backbone_config,
        plan.classes,
        config.label_tables,
        backbone,
        dtype=dtype,
        null_row=False,
        low_rank=low_rank,
    )
    state = {key: value for key, value in learngene.items() if not _is_replaced(key, config)}
    for table, row in tailor.row_of(plan.classes[0]).items():
        state[f"{table}.weight"] = row.unsqueeze(0)
    by_target: dict[str, list[Components]] = {}
    for part in parts:
        by_target.setdefault(part.target, []).append(part.shared)
    for target, ranks in plan.ranks.items():
        state.update(_plain_target(target, ranks, by_target[target], learngene.get(f"{target}.bias")))
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True)
    return module


def _plain_target(target: str, ranks: Sequence[Rank], parts: Sequence[Components], bias: Tensor | None) -> State:
    """State-dict entries of one target in the form `ranks` (see models/low_rank.py)."""
    if all(rank is None for rank in ranks):
        state = {f"{target}.weight": torch.cat([compose(part) for part in parts])}
        return state if bias is None else {**state, f"{target}.bias": bias}
    biases = [None] * len(parts) if bias is None else bias.chunk(len(parts))
    state = {}
    for index, (rank, part, own_bias) in enumerate(zip(ranks, parts, biases, strict=True)):
        place = target if len(parts) == 1 else f"{target}.parts.{index}"
        if rank is None:
            state[f"{place}.weight"] = compose(part)
        else:
            kept = truncate(part, rank)
            state[f"{place}.0.weight"] = kept.v
            state[f"{place}.1.weight"] = (kept.u * kept.s.unsqueeze(1)).mT
            place = f"{place}.1"
        if own_bias is not None:
            state[f"{place}.bias"] = own_bias
    return state


def _with_ranks(config: PoolConfig, tailor: Tailor, ranks: Mapping[str, Sequence[int]]) -> Tailor:
    components = _resized(tailor.components, config.tailor_ranks_of(tailor.classes[0]), ranks)
    return Tailor(tailor.classes, components, tailor.rows)


def _resized(state: State, ranks: Ranks, to: Mapping[str, Sequence[int]]) -> State:
    """Every part of every target truncated, or zero-padded, to the ranks `to`."""
    for target, own in ranks.items():
        if tuple(own) != tuple(to[target]):
            parts = zip(layer_components(state, target, own), to[target], strict=True)
            state = with_components(state, target, [pad(truncate(part, rank), rank) for part, rank in parts])
    return state


def _is_replaced(key: str, config: PoolConfig) -> bool:
    """Whether a learngene key is a target's (its bias included) or a null row."""
    owner, _, leaf = key.rpartition(".")
    return owner in config.ranks or (owner in config.label_tables and leaf == "null_row")


def _literal(name: str) -> str:
    """A module name as a pattern that matches it alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
