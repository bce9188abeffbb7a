"""From a model to the pieces of a pool: its canonical learngene and tailors, with their config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import State, canonical_pieces, canonical_state, split
from kindgene.pool.backbones import describe_backbone
from kindgene.pool.config import PoolConfig, Ranks
from kindgene.pool.names import check_class_names
from kindgene.pool.tailor import Tailor
from kindgene.pool.tensors import check_finite, state_id


def decompose_model(
    model: Decomposable, class_names: Sequence[str] | None, provenance: Mapping[str, Any] | None
) -> tuple[PoolConfig, State, list[Tailor]]:
    """Config, learngene and tailors of a model, canonical (float64 inside, the model's dtype outside).

    Raises ValueError for classes without names and for weights that are not finite.
    """
    names = names_of(model, class_names)
    pieces = split(model)
    check_finite("this model", pieces.learngene)
    ranks: Ranks = {name: layer.ranks for name, layer in model.layers.items()}
    canonical = canonical_pieces(pieces, ranks, tailor_ranks_of(model))
    tailors = _tailors(model, names, canonical.tailors, canonical.labels)
    backbone, backbone_config = describe_backbone(model.module)
    config = PoolConfig(
        backbone=backbone,
        backbone_config=backbone_config,
        ranks=ranks,
        label_tables=tuple(model.label_tables),
        label_argument=model.label_argument,
        learngene_id=state_id(canonical.learngene),
        learngene_sha256="",
        weights=model.weights,
        classes={},
        provenance=dict(provenance or {}),
    )
    entries = {name: entry for tailor in tailors for name, entry in tailor.entries(tailor_ranks_of(model)).items()}
    return config.with_classes({name: entries[name] for name in names}), canonical.learngene, tailors


def new_tailors(model: Decomposable, class_names: Sequence[str] | None, learngene: State) -> list[Tailor]:
    """A transferred model's tailors, canonical. Raises ValueError unless its learngene is this one, bit for bit."""
    names = names_of(model, class_names)
    pieces = split(model)
    if state_id(pieces.learngene) != state_id(learngene):
        raise ValueError(
            "this model's learngene is not the pool's: tailors work with the learngene they were trained with, and it "
            "must stay frozen (train a model that pool.transfer returned)"
        )
    ranks = tailor_ranks_of(model)
    return _tailors(model, names, [canonical_state(tailor, ranks) for tailor in pieces.tailors], pieces.labels)


def tailor_ranks_of(model: Decomposable) -> Ranks:
    """Target -> tailor rank of each of its parts."""
    return {name: layer.tailor_ranks for name, layer in model.layers.items()}


def names_of(model: Decomposable, class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The names given, or the model's own; checked, one a class."""
    given = model.class_names if class_names is None else class_names
    if given is None:
        raise ValueError("this model's classes have no names yet: pass class_names=[...]")
    names = check_class_names(given)
    if len(names) != model.num_classes:
        raise ValueError(f"{len(names)} class names for a model of {model.num_classes} classes")
    return names


def _tailors(
    model: Decomposable, names: Sequence[str], components: Sequence[State], labels: Sequence[State]
) -> list[Tailor]:
    """One `Tailor` for each row of the bank, with the label rows of all classes that share it."""
    gate_map = cast("list[int]", model.bank.tailor_of.tolist())
    members: list[list[int]] = [[] for _ in components]
    for label, row in enumerate(gate_map):
        members[row].append(label)
    tailors = []
    for own, state in zip(members, components, strict=True):
        classes = tuple(names[label] for label in own)
        rows = {table: torch.stack([labels[label][table] for label in own]) for table in model.label_tables}
        check_finite(f"the tailor of {', '.join(map(repr, classes))}", {**state, **rows})
        tailors.append(Tailor(classes, state, rows))
    return tailors
