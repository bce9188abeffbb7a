"""The folder of a run: what it is (run.json), what happened (log.jsonl), where it can go on (checkpoints/).

What was left out of its data is listed in skipped.jsonl, if anything was.

A run's identity is its configuration, data, model and diffusion path. It is saved with every checkpoint: a
run is continued as what it was, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kindgene import files
from kindgene.core.decomposable import Decomposable
from kindgene.diffusion.path import DiffusionPath
from kindgene.training.batches import Dataset
from kindgene.training.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint
from kindgene.training.config import TrainConfig
from kindgene.training.ema import averaged_weights
from kindgene.training.environment import environment
from kindgene.training.optimizer import row_tables
from kindgene.training.spread import fill_

_LOG = logging.getLogger(__name__)

# What may change when a run is continued: it decides what is written, and where things are computed, not what.
_FREE = (
    *("log_every", "checkpoint_every", "checkpoints_total_limit", "diagnose_every", "sample_every", "report_to"),
    *("parallel", "shard_learngene", "num_workers", "gradient_checkpointing", "compile", "on_nonfinite"),
)

Resume = bool | str | os.PathLike[str]
"""Whether to go on with a run: True or "latest" from its latest checkpoint, or from the one whose folder is named."""


@dataclass(frozen=True)
class Origin:
    """Where a run comes from, for whoever reads its folder; nothing is computed from it, and it may change.

    facts: plain data, for run.json. skipped: what was left out of the data, a line each for skipped.jsonl, with
    ``kind`` to count by.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[Mapping[str, str]] = ()

    def to_dict(self) -> dict[str, Any]:
        """The facts, and how much of each kind was left out."""
        kinds = Counter(line["kind"] for line in self.skipped)
        return {**self.facts, "skipped": {"total": len(self.skipped), "kinds": dict(kinds.most_common())}}


class RunFolder:
    """The files of one run under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.jsonl"
        self.description = path / "run.json"
        self.skipped = path / "skipped.jsonl"

    def open(self, resume: Resume) -> None:
        """Makes the folder, or finds the run in it. Raises ValueError as `check` does."""
        self.check(resume)
        self.path.mkdir(parents=True, exist_ok=True)

    def check(self, resume: Resume) -> None:
        """Raises ValueError for a run that is there and not asked for, or missing, or lacks the checkpoint named."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file, not a folder for a run")
        there = any(path.exists() for path in (self.description, self.checkpoints, self.log))
        if there and not resume:
            raise ValueError(
                f"{self.path} holds a run already: pass resume=True (--resume latest) to continue it, or give another "
                "folder"
            )
        if resume and not there:
            raise ValueError(f"{self.path} holds no run to resume: start one without resume")
        if resume and not _latest(resume):
            self._named(Path(cast(str, resume)))

    def checkpoint(self, resume: Resume, identity: Mapping[str, Any]) -> Checkpoint | None:
        """The checkpoint to go on from, every file of it checked; None where the run died before its first one.

        Raises ValueError where none is whole, the one named is not there, or the run was another one.
        """
        if _latest(resume):
            found = latest_checkpoint(self.checkpoints)
            if found is None:
                _LOG.warning("%s has no checkpoint yet: the run begins again", self.path)
                return None
        else:
            found = open_checkpoint(self._named(Path(cast(str, resume))))
        _check_same(found, identity)
        return found

    def _named(self, path: Path) -> Path:
        """The folder of a checkpoint of this run, given as a path or by its name alone."""
        for candidate in (path, self.checkpoints / path):
            if candidate.is_dir() and candidate.resolve().parent == self.checkpoints.resolve():
                return candidate
        there = sorted(entry.name for entry in self.checkpoints.glob("step-*"))
        listed = ", ".join(there) or "none"
        raise ValueError(f"{path} is not a checkpoint of {self.path}; it has {listed}; or say latest")

    def describe(
        self, identity: Mapping[str, Any], model: nn.Module, processes: int, origin: Origin | None = None
    ) -> None:
        """Writes run.json, and skipped.jsonl where something was."""
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        counts += [
            ((table.count - len(table.rows)) * table.rows.shape[1], True) for table in row_tables(model).values()
        ]  # rows that other processes hold
        facts = {
            "parameters": sum(count for count, _ in counts),
            "trainable_parameters": sum(count for count, trained in counts if trained),
            "seed": identity["config"]["seed"],
            **environment(processes),
        }
        if origin is not None:
            facts["origin"] = origin.to_dict()
            if origin.skipped:
                lines = "".join(json.dumps(line) + "\n" for line in origin.skipped)  # ASCII: any file name
                files.write_bytes(self.skipped, lines.encode())
            else:
                self.skipped.unlink(missing_ok=True)
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
        "data": dataset.fingerprint(),
        "model": {
            "backbone": {key: value for key, value in settings.items() if not key.startswith("_")},
            "kind": model.kind.to_dict() if isinstance(model, Decomposable) else None,
            "trained": hashlib.sha256("\n".join(trained).encode()).hexdigest(),
        },
        "path": asdict(path),
    }
    return cast(dict[str, Any], json.loads(json.dumps(facts, default=str)))


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
    if any(isinstance(value, DTensor) for value in mine.values()):
        for key, value in mine.items():
            fill_(value, weights[key])
    else:
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


def _latest(resume: Resume) -> bool:
    return resume is True or resume == "latest"


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
