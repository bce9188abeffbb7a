"""The folder of a run: what it is (run.json), what happened (log.jsonl), where it can go on (checkpoints/).

A run's identity is its configuration, data, model and diffusion path. It is saved with every checkpoint: a
run is continued as what it was, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import accelerate
import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from kindgene import files
from kindgene._version import __version__
from kindgene.core.decomposable import Decomposable
from kindgene.diffusion.path import DiffusionPath
from kindgene.training.checkpoint import Checkpoint, latest_checkpoint
from kindgene.training.config import TrainConfig
from kindgene.training.ema import averaged_weights

# What may change when a run is continued: it decides what is written, not what is computed.
_FREE = ("log_every", "checkpoint_every", "checkpoints_total_limit")
_IMAGES_HASHED = 4096


class Dataset(Protocol):
    """What training needs of a data set; `kindgene.data.arrays.ArrayDataset` is one."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], one a sample."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""

    def batch(self, indices: Tensor) -> Tensor:
        """The images [B, C, H, W] at `indices` [B]."""


class RunFolder:
    """The files of one run under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.jsonl"
        self.description = path / "run.json"

    @classmethod
    def open(cls, out: str | os.PathLike[str], resume: bool) -> RunFolder:
        """Makes the folder, or finds the run in it. ValueError for one not asked for, or missing."""
        run = cls(Path(out))
        if run.path.exists() and not run.path.is_dir():
            raise ValueError(f"{run.path} is a file, not a folder for a run")
        there = any(path.exists() for path in (run.description, run.checkpoints, run.log))
        if there and not resume:
            raise ValueError(
                f"{run.path} holds a run already: pass resume=True (--resume) to continue it, or give another folder"
            )
        if resume and not there:
            raise ValueError(f"{run.path} holds no run to resume: start one without resume")
        run.path.mkdir(parents=True, exist_ok=True)
        return run

    def latest(self, identity: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint to go on from. Raises ValueError where none is whole, or the run was another one."""
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is None:
            raise ValueError(f"{self.path} holds a run without any checkpoint: start again in another folder")
        _check_same(checkpoint, identity)
        return checkpoint

    def describe(self, identity: Mapping[str, Any], model: nn.Module) -> None:
        """Writes run.json."""
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        facts = {
            "parameters": sum(count for count, _ in counts),
            "trainable_parameters": sum(count for count, trained in counts if trained),
            "seed": identity["config"]["seed"],
            "versions": {
                "kindgene": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "accelerate": accelerate.__version__,
                "numpy": np.__version__,
                "safetensors": safetensors.__version__,
            },
            "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
        }
        files.write_json(self.description, {**identity, **facts})

    def append(self, line: Mapping[str, Any]) -> None:
        """One more line of the log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def sync_log(self) -> None:
        """Flushes the log to disk: a checkpoint is never ahead of it."""
        with self.log.open("ab") as file:
            os.fsync(file.fileno())

    def cut_log(self, step: int) -> None:
        """Drops what the log tells of steps after `step`, and a last line that was cut short."""
        if not self.log.exists():
            return
        kept = [line for line in self.log.read_bytes().splitlines(keepends=True) if _step_of(line) <= step]
        files.write_bytes(self.log, b"".join(kept))


def identity_of(model: nn.Module, dataset: Dataset, config: TrainConfig, path: DiffusionPath) -> dict[str, Any]:
    """What makes a run this run and no other, as plain data."""
    backbone = cast(Any, model).config
    settings = dict(backbone) if isinstance(backbone, Mapping) else backbone.to_dict()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    facts = {
        "config": config.to_dict(),
        "data": data_fingerprint(dataset),
        "model": {
            "backbone": {key: value for key, value in settings.items() if not key.startswith("_")},
            "kind": model.kind.to_dict() if isinstance(model, Decomposable) else None,
            "trained": hashlib.sha256("\n".join(trained).encode()).hexdigest(),
        },
        "path": asdict(path),
    }
    return cast(dict[str, Any], json.loads(json.dumps(facts, default=str)))


def data_fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Size, class names, SHA-256 of all labels and of the images (at most 4,096, evenly spaced)."""
    count = len(dataset.labels)
    indices = torch.arange(count) if count <= _IMAGES_HASHED else torch.arange(_IMAGES_HASHED) * count // _IMAGES_HASHED
    images = hashlib.sha256()
    for part in indices.split(256):
        images.update(dataset.batch(part).contiguous().numpy().tobytes())
    return {
        "images": count,
        "class_names": list(dataset.class_names),
        "labels_sha256": hashlib.sha256(dataset.labels.numpy().tobytes()).hexdigest(),
        "images_sha256": images.hexdigest(),
    }


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Fills a model's whole state. Raises ValueError naming `source` and the first key that does not fit."""
    mine = model.state_dict()
    for key in sorted(mine.keys() ^ weights.keys()):
        raise ValueError(f"{source}: {key} is {'missing' if key in mine else 'unexpected'}; it is of another model")
    for key, value in mine.items():
        if (weights[key].shape, weights[key].dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"{source}: {key} is {weights[key].dtype} {list(weights[key].shape)}, the model has "
                f"{value.dtype} {list(value.shape)}"
            )
    model.load_state_dict(dict(weights), strict=True)


def load_checkpoint_model(out: str | os.PathLike[str], model: nn.Module, weights: Literal["ema", "raw"] = "ema") -> int:
    """Fills `model` from the latest checkpoint of the run in `out`, sets it to eval, and returns the step.

    Raises ValueError for a folder without a whole checkpoint, a model of another shape, and EMA weights of a
    run that kept none.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    checkpoint = latest_checkpoint(RunFolder(Path(out)).checkpoints)
    if checkpoint is None:
        raise ValueError(f"{out} holds no checkpoint of a run")
    state = checkpoint.tensors("model")
    if weights == "ema":
        if "ema" not in checkpoint.names:
            raise ValueError(f"{out} kept no EMA weights (ema_decay was 0): ask for the raw ones")
        averages = averaged_weights(checkpoint.tensors("ema"), state)
        state |= {name: average.to(state[name].dtype) for name, average in averages.items()}
    load_weights(model, state, str(checkpoint.file("model")))
    if isinstance(model, Decomposable):
        model.weights = weights
    model.eval()
    return checkpoint.step


def _check_same(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    before, after = _flat(checkpoint.state["identity"]), _flat(now)
    free = {f"config.{name}" for name in _FREE}
    if before.get("config.schedule") == "constant":
        free.add("config.steps")  # the same run, longer
    keys = sorted(before.keys() | after.keys())
    changed = [key for key in keys if key not in free and before.get(key) != after.get(key)]
    if changed:
        told = "; ".join(f"{key} was {_short(before.get(key))}, is {_short(after.get(key))}" for key in changed[:5])
        raise ValueError(f"{checkpoint.path} is of another run and cannot be continued so: {told}")
    if now["config"]["steps"] < checkpoint.step:
        raise ValueError(f"{checkpoint.path} is further than the {now['config']['steps']} steps asked for")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{prefix}.{name}".lstrip(".")).items()
    }


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _step_of(line: bytes) -> float:
    """The step a line of the log tells of; infinity for one that was cut short."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
