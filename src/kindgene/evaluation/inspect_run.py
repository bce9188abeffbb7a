"""A run's folder, or one checkpoint of it, inspected: its raw weights and their averages, before any canonical form."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kindgene.core.config import KindConfig
from kindgene.core.convert import find_targets
from kindgene.core.pieces import State
from kindgene.evaluation.history import read_history
from kindgene.evaluation.inspection import MEASURED, ClassFacts, Inspection
from kindgene.evaluation.layers import evenly_spaced, measure
from kindgene.evaluation.matrices import plain_matrices, trained_matrices
from kindgene.files import read_json, read_shapes
from kindgene.models.dit import DiT
from kindgene.pool.classes import compact_ranks
from kindgene.pool.names import check_class_names, quoted
from kindgene.training.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint
from kindgene.training.ema import averaged_weights
from kindgene.training.run import RunFolder

LOSSES = 50
"""The loss is told as the mean of the first and of the last so many steps (ours)."""


def inspect_run(root: Path, classes: Sequence[str] | None, listing: bool) -> Inspection:
    """The latest whole checkpoint of a run, and its history. Raises ValueError where there is no checkpoint."""
    folder = RunFolder(root)
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        raise ValueError(f"{root} is a run without any checkpoint, so it has no weights to inspect")
    found = _inspect(root, checkpoint, "run", classes, listing)
    return replace(found, record=found.record | _origin(folder), history=read_history(folder.log))


def inspect_checkpoint(root: Path, classes: Sequence[str] | None, listing: bool) -> Inspection:
    """One checkpoint. Raises ValueError naming the file that is not whole."""
    return _inspect(root, open_checkpoint(root), "checkpoint", classes, listing)


def _inspect(root: Path, checkpoint: Checkpoint, kind: Any, classes: Sequence[str] | None, listing: bool) -> Inspection:
    identity = _identity(checkpoint)
    names: list[str] = identity["data"]["class_names"]
    module = _backbone(identity["model"]["backbone"], checkpoint.path)
    source = checkpoint.file("model")
    shapes = read_shapes(source)
    facts: dict[str, Any] = {
        "path": str(root),
        "kind": kind,
        "backbone": "DiT",
        "canonical": False,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "bytes": source.stat().st_size,
        "record": _record(checkpoint, identity),
    }
    weights = {} if listing else _weights(checkpoint)
    if identity["model"]["kind"] is None:
        if classes is not None:
            raise ValueError(f"{root} trained a plain DiT: it has no tailors to choose by class")
        plain = {key: plain_matrices(state, module, str(source)) for key, state in weights.items()}
        return Inspection(
            **facts,
            learngene_parameters=None,
            ranks={},
            classes={name: ClassFacts(parameters=module.config.hidden_size, tailor_ranks=None) for name in names},
            tailor_count=0,
            structures=[measure(key, matrices, []) for key, matrices in plain.items()],
        )
    settings = KindConfig(**identity["model"]["kind"])
    tailor_of = dict(zip(names, settings.tailor_of, strict=True))
    count = max(settings.tailor_of) + 1
    rows = evenly_spaced(count, MEASURED) if classes is None else _rows(tailor_of, classes, root)
    members = [[name for name, tailor in tailor_of.items() if tailor == row] for row in rows]
    targets = find_targets(module, settings)
    tables = [shapes.get(f"bank.{table}.rows", (0, 0)) for table in ("tailors", "labels")]
    own = ClassFacts(
        parameters=sum(shape[1] for shape in tables),
        tailor_ranks=compact_ranks({target.name: target.tailor_ranks for target in targets}),
    )
    return Inspection(
        **facts,
        learngene_parameters=facts["parameters"] - sum(math.prod(shape) for shape in tables),
        ranks={target.name: target.ranks for target in targets},
        classes=dict.fromkeys(names, own),
        tailor_count=count,
        structures=[
            measure(key, trained_matrices(state, module, settings, rows, str(source)), members)
            for key, state in weights.items()
        ],
    )


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the run was (training/run.py), as far as it is needed here."""
    identity = checkpoint.state.get("identity")
    if not isinstance(identity, dict) or not all(isinstance(identity.get(key), dict) for key in ("data", "model")):
        raise ValueError(f"{checkpoint.path} does not say which run it is of, so its weights cannot be told apart")
    return identity


def _backbone(config: Mapping[str, Any], where: Path) -> DiT:
    """The run's dense backbone, without memory: it knows where the matrices are, and no values."""
    try:
        with torch.device("meta"):
            module: DiT = DiT.from_config(dict(config))
    except ValueError as error:
        raise ValueError(f"{where} is of a run whose backbone is not kindgene's DiT: {error}") from error
    return module


def _record(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> dict[str, Any]:
    losses: list[float] = checkpoint.tensors("history")["losses"].tolist()
    return {
        "step": checkpoint.step,
        "steps": identity["config"]["steps"],
        "loss_first": _mean(losses[:LOSSES]),
        "loss_last": _mean(losses[-LOSSES:]),
        "seconds": checkpoint.state["seconds"],
        "data": identity["data"],
        "config": identity["config"],
    }


def _origin(folder: RunFolder) -> dict[str, Any]:
    """Where the run says that it comes from: recipe, data; nothing of a run that does not say."""
    if not folder.description.is_file():
        return {}
    told = read_json(folder.description)
    return {"origin": told["origin"]} if isinstance(told, dict) and isinstance(told.get("origin"), dict) else {}


def _weights(checkpoint: Checkpoint) -> dict[str, State]:
    """The state of the averaged weights, where the run kept them, and of the raw ones."""
    raw = checkpoint.tensors("model")
    if "ema" not in checkpoint.names:
        return {"raw": raw}
    return {"ema": raw | averaged_weights(checkpoint.tensors("ema"), raw), "raw": raw}


def _rows(tailor_of: Mapping[str, int], classes: Sequence[str], root: Path) -> list[int]:
    """The rows of the bank that serve these classes, in their order."""
    for name in check_class_names(classes):
        if name not in tailor_of:
            near = difflib.get_close_matches(name, tailor_of, n=3) or list(tailor_of)[:10]
            raise ValueError(f"no class {name!r} in {root}; nearest: {quoted(near)}")
    return list(dict.fromkeys(tailor_of[name] for name in classes))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
