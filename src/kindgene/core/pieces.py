"""A decomposable model as plain tensors: split into learngene and tailors, brought to canonical form, joined again.

`split` and `join` are inverse bit for bit. `canonical_pieces` changes the numbers, never the function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kindgene.core.components import Components, canonical
from kindgene.core.decomposable import Decomposable
from kindgene.core.linear import join_parts, split_parts

State = dict[str, Tensor]
Ranks = Mapping[str, Sequence[int]]
"""Target name -> rank of each of its parts."""


@dataclass(frozen=True)
class Pieces:
    """`learngene`: the module's state (all that is shared); `tailors`: each row's components; `labels`: each class's
    label rows. Tensors are the model's own numbers, detached copies.
    """

    learngene: State
    tailors: list[State]
    labels: list[State]


def split(model: Decomposable) -> Pieces:
    """Takes a model apart, bit for bit."""
    bank = model.bank
    return Pieces(
        learngene={key: value.detach().clone() for key, value in model.module.state_dict().items()},
        tailors=[_clone(bank.tailors.row(index)) for index in range(bank.tailors.count)],
        labels=[_clone(bank.labels.row(index)) for index in range(bank.labels.count)],
    )


def join(model: Decomposable, pieces: Pieces) -> Decomposable:
    """Puts pieces into a model of the same shape, bit for bit.

    Raises ValueError naming the piece where numbers, names or shapes differ; the model is as it was then.
    """
    current = model.module.state_dict()
    for what, rows, count in (
        ("tailors", pieces.tailors, model.bank.tailors.count),
        ("label rows", pieces.labels, model.bank.labels.count),
    ):
        if len(rows) != count:
            raise ValueError(f"{len(rows)} {what} do not fit a model of {count}")
    bank = model.bank
    fits = [("learngene", pieces.learngene, current)]
    fits += [(f"tailor {index}", row, bank.tailors.row(index)) for index, row in enumerate(pieces.tailors)]
    fits += [(f"label rows of class {index}", row, bank.labels.row(index)) for index, row in enumerate(pieces.labels)]
    for what, found, expected in fits:
        _same_names(what, found, expected)
        for key, value in found.items():
            _same_shape(what, key, value, expected[key])
    model.module.load_state_dict(pieces.learngene, strict=True)
    with torch.no_grad():
        for _, row, views in fits[1:]:
            for key, value in row.items():
                views[key].copy_(value)
    return model


def layer_components(state: State, name: str, ranks: Sequence[int]) -> list[Components]:
    """The components of each part of target `name` out of a learngene's or a tailor's state."""
    return split_parts(Components(*(state[f"{name}.{factor}"] for factor in "usv")), ranks)


def with_components(state: State, name: str, parts: Sequence[Components]) -> State:
    """The state with target `name`'s components replaced (in the dtype it had)."""
    joined = join_parts(parts)
    return {**state, **{f"{name}.{factor}": getattr(joined, factor) for factor in "usv"}}


def canonical_state(state: State, ranks: Ranks) -> State:
    """Every target of a learngene or a tailor in canonical form (float64 inside, the state's dtype outside)."""
    for name, target_ranks in ranks.items():
        dtype = state[f"{name}.s"].dtype
        parts = [canonical(part).to(dtype) for part in layer_components(state, name, target_ranks)]
        state = with_components(state, name, parts)
    return state


def canonical_pieces(pieces: Pieces, ranks: Ranks, tailor_ranks: Ranks) -> Pieces:
    """The same model with learngene and every tailor canonical, each on its own."""
    return Pieces(
        learngene=canonical_state(pieces.learngene, ranks),
        tailors=[canonical_state(tailor, tailor_ranks) for tailor in pieces.tailors],
        labels=pieces.labels,
    )


def _clone(state: State) -> State:
    return {key: value.clone() for key, value in state.items()}


def _same_names(what: str, found: State, expected: State) -> None:
    missing, foreign = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or foreign:
        raise ValueError(f"{what}: missing {missing[:3] or 'nothing'}, unexpected {foreign[:3] or 'nothing'}")


def _same_shape(what: str, key: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise ValueError(f"{what}: {key} has shape {list(found.shape)}, expected {list(expected.shape)}")
