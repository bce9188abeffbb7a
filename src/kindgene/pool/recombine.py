"""Learngene and chosen tailors, put together into a model again.

`assemble` makes a decomposable model (trainable, or static behind its gate); `merge` folds one class's tailor into the
learngene: a plain backbone of ordinary ``nn.Linear`` layers, single or in thin pairs, that needs nothing of the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kindgene.core.components import Components, canonical, compose, concatenate, from_matrix, pad, truncate
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import Pieces, State, join, layer_components, with_components
from kindgene.pool.backbones import build_backbone, floating_dtype
from kindgene.pool.budget import Item, factored_choices, merged_choices, plan
from kindgene.pool.config import PoolConfig, Ranks
from kindgene.pool.tailor import Tailor


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
    dtype = floating_dtype(learngene)
    module = build_backbone(
        config.backbone, config.backbone_config, classes, config.label_tables, backbone, dtype=dtype
    )
    used = [tailor for tailor in tailors if any(name in tailor.classes for name in classes)]
    gate_map = [next(i for i, tailor in enumerate(used) if name in tailor.classes) for name in classes]
    order = list(dict.fromkeys(gate_map))  # tailors in the order in which the classes ask for them
    kind = KindConfig(
        num_classes=len(classes),
        learngene_rank=ranks,
        tailor_rank=tailor_ranks,
        targets=[_literal(name) for name in ranks],
        fused={_literal(name): len(parts) for name, parts in ranks.items() if len(parts) > 1},
        class_rows=[_literal(name) for name in config.label_tables],
        label_argument=config.label_argument,
        gate_map=[order.index(index) for index in gate_map],
        init="random",
    )
    model = make_decomposable(module, kind)
    own_rows = [next(tailor for tailor in used if name in tailor.classes).row_of(name) for name in classes]
    join(model, Pieces(learngene, [used[index].components for index in order], own_rows))
    model.class_names = tuple(classes)
    model.weights = cast("object", config.weights)  # type: ignore[assignment]
    return model


def truncated(
    config: PoolConfig,
    learngene: State,
    tailors: Sequence[Tailor],
    classes: Sequence[str],
    max_parameters: int | None,
) -> tuple[State, list[Tailor], Ranks, Ranks]:
    """Learngene and tailors cut to a budget for the gated form, with the ranks they then have."""
    used = [tailor for tailor in tailors if any(name in tailor.classes for name in classes)]
    tailor_ranks = widest_ranks(config, classes)
    if max_parameters is None:
        return learngene, [_resized_tailor(config, t, tailor_ranks) for t in used], config.ranks, tailor_ranks
    items, costs = [], 0
    for target, ranks in config.ranks.items():
        own = [layer_components(t.components, target, config.tailor_ranks_of(t.classes[0])[target]) for t in used]
        for part, shared in enumerate(layer_components(learngene, target, ranks)):
            cost = shared.u.shape[1] + shared.v.shape[1] + 1
            theirs = torch.stack([_squares(tailor[part].s, tailor_ranks[target][part]) for tailor in own]).mean(0)
            squares = shared.s.double().square()
            whole = float(squares.sum() + theirs.sum())
            items.append(Item((target, str(part), "learngene"), factored_choices(squares.tolist(), cost, whole)))
            items.append(
                Item((target, str(part), "tailor"), factored_choices(theirs.tolist(), cost * len(used), whole))
            )
            costs += shared.u.numel() + shared.v.numel() + shared.s.numel()
    fixed = sum(value.numel() for value in learngene.values()) - costs
    fixed += sum(rows.shape[1] for rows in used[0].rows.values()) * len(classes)
    chosen = plan(items, fixed, max_parameters)

    def kept(target: str, what: str) -> tuple[int, ...]:
        return tuple(cast(int, chosen[target, str(part), what]) for part in range(len(config.ranks[target])))

    new_ranks = {target: kept(target, "learngene") for target in config.ranks}
    new_tailor_ranks = {target: kept(target, "tailor") for target in config.ranks}
    cut = [_resized_tailor(config, tailor, new_tailor_ranks) for tailor in used]
    return _resized(learngene, config.ranks, new_ranks), cut, new_ranks, new_tailor_ranks


def merge(
    config: PoolConfig,
    learngene: State,
    tailor: Tailor,
    name: str,
    max_parameters: int | None,
    backbone: nn.Module | None = None,
) -> nn.Module:
    """A plain model of one class: every target W = learngene + tailor, dense or a thin pair, whichever costs less."""
    dtype = floating_dtype(learngene)
    tailor_ranks = config.tailor_ranks_of(name)
    parts: dict[tuple[str, str], Components] = {}
    items, shared_targets = [], 0
    for target, ranks in config.ranks.items():
        own = layer_components(tailor.components, target, tailor_ranks[target])
        for part, (shared, extra) in enumerate(zip(layer_components(learngene, target, ranks), own, strict=True)):
            both = concatenate(shared, extra)
            outputs, inputs = both.u.shape[1], both.v.shape[1]
            if both.rank > min(inputs, outputs):
                both = from_matrix(compose(both.to(torch.float64)), min(inputs, outputs))
            elif max_parameters is not None:
                both = canonical(both)  # jointly: a prefix is then the best part of the whole active matrix
            parts[target, str(part)] = both
            squares = both.s.double().square()
            choices = merged_choices(squares.tolist(), inputs, outputs, float(squares.sum()))
            items.append(Item((target, str(part)), choices))
            shared_targets += shared.u.numel() + shared.v.numel() + shared.s.numel()
    null_rows = sum(learngene[f"{table}.null_row"].numel() for table in config.label_tables)
    fixed = sum(value.numel() for value in learngene.values()) - shared_targets - null_rows
    fixed += sum(rows.shape[1] for rows in tailor.rows.values())
    chosen = plan(items, fixed, max_parameters)

    form = {t: [chosen[t, str(part)] for part in range(len(ranks))] for t, ranks in config.ranks.items()}
    low_rank = {target: ranks for target, ranks in form.items() if any(rank is not None for rank in ranks)}
    module = build_backbone(
        config.backbone,
        config.backbone_config,
        [name],
        config.label_tables,
        backbone,
        dtype=dtype,
        null_row=False,
        low_rank=low_rank,
    )
    state = {key: value for key, value in learngene.items() if not _of_target(key, config)}
    for table, row in tailor.row_of(name).items():
        state[f"{table}.weight"] = row.unsqueeze(0)
    for target, forms in form.items():
        kept = [
            parts[target, str(i)] if rank is None else truncate(parts[target, str(i)], rank)
            for i, rank in enumerate(forms)
        ]
        state.update(_plain_target(target, forms, kept, learngene.get(f"{target}.bias")))
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True)
    return module


def widest_ranks(config: PoolConfig, classes: Sequence[str]) -> Ranks:
    """For each part the highest tailor rank among these classes: what their common table is padded to."""
    ranks = [config.tailor_ranks_of(name) for name in classes]
    return {
        target: tuple(max(column) for column in zip(*(r[target] for r in ranks), strict=True))
        for target in config.ranks
    }


def _plain_target(target: str, ranks: Sequence[int | None], parts: Sequence[Components], bias: Tensor | None) -> State:
    """State-dict entries of one target in the form `ranks` (see models/low_rank.py)."""
    if all(rank is None for rank in ranks):
        state = {f"{target}.weight": torch.cat([compose(part.to(torch.float64)) for part in parts])}
        return state if bias is None else {**state, f"{target}.bias": bias}
    biases = [None] * len(parts) if bias is None else bias.chunk(len(parts))
    state = {}
    for index, (rank, part, own_bias) in enumerate(zip(ranks, parts, biases, strict=True)):
        place = target if len(parts) == 1 else f"{target}.parts.{index}"
        if rank is None:
            state[f"{place}.weight"] = compose(part.to(torch.float64))
        else:
            state[f"{place}.0.weight"] = part.v
            state[f"{place}.1.weight"] = (part.u * part.s.unsqueeze(1)).mT
            place = f"{place}.1"
        if own_bias is not None:
            state[f"{place}.bias"] = own_bias
    return state


def _resized_tailor(config: PoolConfig, tailor: Tailor, to: Ranks) -> Tailor:
    components = _resized(tailor.components, config.tailor_ranks_of(tailor.classes[0]), to)
    return Tailor(tailor.classes, components, tailor.rows)


def _resized(state: State, ranks: Ranks, to: Mapping[str, Sequence[int]]) -> State:
    """Every part of every target truncated, or zero-padded, to the ranks `to`."""
    for target, own in ranks.items():
        if tuple(own) != tuple(to[target]):
            parts = zip(layer_components(state, target, own), to[target], strict=True)
            state = with_components(state, target, [pad(truncate(part, rank), rank) for part, rank in parts])
    return state


def _of_target(key: str, config: PoolConfig) -> bool:
    """Whether a learngene key is a target's (its bias included) or a null row."""
    owner, _, leaf = key.rpartition(".")
    return owner in config.ranks or (owner in config.label_tables and leaf == "null_row")


def _squares(s: Tensor, length: int) -> Tensor:
    return nn.functional.pad(s.double().square(), (0, length - s.shape[0]))


def _literal(name: str) -> str:
    """A module name as a pattern that matches it alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
