"""From a model to the pieces of a pool: its canonical learngene and tailors, with their config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import State, canonical_pieces, canonical_state, split
from kindgene.pool.backbones import describe_backbone
from kindgene.pool.classes import Ranks
from kindgene.pool.config import PoolConfig
from kindgene.pool.names import check_class_names, quoted
from kindgene.pool.tailor import Tailor
from kindgene.pool.tensors import check_finite, state_id


def decompose_model(
    model: Decomposable, class_names: Sequence[str] | None, provenance: Mapping[str, Any] | None
) -> tuple[PoolConfig, State, list[Tailor]]:
    """Config, learngene and tailors of a model, canonical (float64 inside, the model's dtype outside).

    Raises ValueError for classes without names, for weights that are not finite, and for a record that is not JSON.
    """
    names = names_of(model, class_names)
    _check_components(model)
    record = _plain_record(provenance)
    pieces = split(model)
    check_finite("this model", pieces.learngene)
    _check_tailors(model, names, pieces.tailors)
    ranks: Ranks = {name: layer.component_ranks for name, layer in model.layers.items()}
    canonical = canonical_pieces(pieces, ranks, tailor_ranks_of(model))
    check_finite("this model in canonical form", canonical.learngene)
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
        provenance=record,
    )
    entries = {name: entry for tailor in tailors for name, entry in tailor.entries(tailor_ranks_of(model)).items()}
    return config.with_classes({name: entries[name] for name in names}), canonical.learngene, tailors


def new_tailors(model: Decomposable, class_names: Sequence[str] | None, learngene: State) -> list[Tailor]:
    """A transferred model's tailors, canonical.

    Raises ValueError unless its learngene is this one, bit for bit, and for weights that are not finite.
    """
    names = names_of(model, class_names)
    pieces = split(model)
    if state_id(pieces.learngene) != state_id(learngene):
        raise ValueError(
            "this model's learngene is not the pool's: tailors work with the learngene they were trained with, and it "
            "must stay frozen (train a model that pool.transfer returned)"
        )
    _check_tailors(model, names, pieces.tailors)
    ranks = tailor_ranks_of(model)
    return _tailors(model, names, [canonical_state(tailor, ranks) for tailor in pieces.tailors], pieces.labels)


def _check_components(model: Decomposable) -> None:
    for name, layer in model.layers.items():
        if None in layer.ranks:
            raise ValueError(
                f"this recombined model keeps {name} as a dense matrix, so it cannot be taken apart again: take its "
                "pieces from the pool that it came from (pool.subset)"
            )


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
    tailors = []
    for own, state in zip(_members(model), components, strict=True):
        classes = tuple(names[label] for label in own)
        rows = {table: torch.stack([labels[label][table] for label in own]) for table in model.label_tables}
        check_finite(f"the tailor of {quoted(classes)}", {**state, **rows})
        tailors.append(Tailor(classes, state, rows))
    return tailors


def _check_tailors(model: Decomposable, names: Sequence[str], components: Sequence[State]) -> None:
    """Before the canonical form, which no matrix with NaN has."""
    for own, state in zip(_members(model), components, strict=True):
        check_finite(f"the tailor of {quoted(names[label] for label in own)}", state)


def _members(model: Decomposable) -> list[list[int]]:
    """The classes of each row of the bank."""
    gate_map = cast("list[int]", model.bank.tailor_of.tolist())
    members: list[list[int]] = [[] for _ in range(model.bank.tailors.count)]
    for label, row in enumerate(gate_map):
        members[row].append(label)
    return members


def _plain_record(provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record as config.json will hold it."""
    if not isinstance(provenance, Mapping | None) or not all(isinstance(key, str) for key in provenance or {}):
        raise ValueError(f"provenance must map texts to plain values, got {provenance!r:.80}")
    try:
        text = json.dumps(dict(provenance or {}), ensure_ascii=False, allow_nan=False)
        return cast("dict[str, Any]", json.loads(text.encode()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be plain values that JSON can hold: {error}") from error
