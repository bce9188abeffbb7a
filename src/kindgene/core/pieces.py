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
        labels=[_clone(bank.labels.row(index)) if bank.labels.sizes else {} for index in range(bank.labels.count)],
    )


def join(model: Decomposable, pieces: Pieces) -> Decomposable:
    """Puts pieces into a model of the same shape, bit for bit.

    Raises ValueError naming the piece where numbers, names or shapes differ.
    """
    current = model.module.state_dict()
    for what, found, expected in (
        ("tailors", pieces.tailors, model.bank.tailors.count),
        ("label rows", pieces.labels, model.bank.labels.count),
    ):
        if len(found) != expected:
            raise ValueError(f"{len(found)} {what} do not fit a model of {expected}")
    _same_names("learngene", pieces.learngene, current)
    for key, value in pieces.learngene.items():
        _same_shape("learngene", key, value, current[key])
    model.module.load_state_dict(pieces.learngene, strict=True)
    with torch.no_grad():
        for index, tailor in enumerate(pieces.tailors):
            put_row(f"tailor {index}", model.bank.tailors.row(index), tailor)
        for index, rows in enumerate(pieces.labels):
            if model.bank.labels.sizes:
                put_row(f"label rows of class {index}", model.bank.labels.row(index), rows)
    return model


def put_row(what: str, views: State, values: State) -> None:
    """Writes named values into a bank row's views."""
    _same_names(what, values, views)
    for key, value in values.items():
        _same_shape(what, key, value, views[key])
        views[key].copy_(value)


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
