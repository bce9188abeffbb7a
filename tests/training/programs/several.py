"""What the tests of several processes run in each of them: every case that is named on the command line.

``several.py [FLAGS] OUT CASE ...`` trains each case into OUT/CASE. The tests import this file for the same cases in
one process.
"""

import json
import os
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.models.dit import DiT
from kindgene.progress import NoProgress
from kindgene.training import trainer
from kindgene.training.config import TrainConfig
from kindgene.training.placement import Placement
from kindgene.training.trainer import TrainResult, train

CLASSES = 5
BASE: dict[str, Any] = {
    "steps": 20,
    "batch_size": 6,
    "learning_rate": 3e-3,
    "warmup_steps": 3,
    "weight_decay": 0.01,
    "log_every": 5,
    "ema_decay": 0.99,
}
_SHORT: dict[str, Any] = {"dtype": torch.float32, "steps": 10}
CASES: dict[str, dict[str, Any]] = {
    "data": {},
    "data-float32": _SHORT,
    "dense": {"dense": True},
    "accumulation": {"gradient_accumulation_steps": 4},
    "elastic": {"elastic_shares": (0.5, 1.0)},
    "frozen": {"frozen": True, "label_drop": 0.0},
    "recomputed": {"gradient_checkpointing": True},
    "compiled": {"compile": True, "steps": 3, "warmup_steps": 0, "depth": 1},
    "tailor": {"parallel": "tailor"},
    "tailor-accumulation": {"parallel": "tailor", "gradient_accumulation_steps": 3},
    "tailor-map": {"parallel": "tailor", "gate_map": (0, 1, 1, 2, 0)},
    "tailor-made": {"parallel": "tailor", "made_with_its_own": True},
    "tailor-frozen": {"parallel": "tailor", "frozen": True, "label_drop": 0.0},
    "sharded": {"shard_learngene": True},
    "sharded-tailor": {"parallel": "tailor", "shard_learngene": True},
    "sharded-dense": {"dense": True, "shard_learngene": True, "gradient_accumulation_steps": 2},
    "one-sample": {"batch_size": 1, "parallel": "tailor"},
    "tailor-float32": {"parallel": "tailor", **_SHORT},
    "sharded-float32": {"shard_learngene": True, **_SHORT},
    "data-bf16": {"mixed_precision": "bf16", **_SHORT},
    "accumulation-bf16": {"gradient_accumulation_steps": 4, "mixed_precision": "bf16", **_SHORT},
    "tailor-bf16": {"parallel": "tailor", "mixed_precision": "bf16", **_SHORT},
    "sharded-bf16": {"shard_learngene": True, "mixed_precision": "bf16", **_SHORT},
    "data-counted": {},
    "tailor-counted": {"parallel": "tailor"},
    "data-stopped": {"steps": 7},
    "tailor-stopped": {"parallel": "tailor", "steps": 7},
    "tailor-fp16": {"parallel": "tailor", "mixed_precision": "fp16", **_SHORT},
}
_MODEL = ("dense", "frozen", "gate_map", "dtype", "depth", "made_with_its_own")


def data() -> ArrayDataset:
    """Five classes; the first has more than half of all images, and a few have no class."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.tensor([0] * 30 + [1] * 9 + [2] * 6 + [3] * 4 + [4] * 2 + [5] * 3)
    images = (
        labels.reshape(-1, 1, 1, 1) / 5 - 0.5 + 0.1 * torch.randn(len(labels), 1, 8, 8, generator=generator)
    ).clamp(-1, 1)
    return ArrayDataset(images, labels, ("a", "b", "c", "d", "e"), flip=True)


def model_of(settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", num_classes=CLASSES, hidden_size=16, depth=settings.get("depth", 2))
    with torch.no_grad():
        for parameter in dense.parameters():  # a fresh DiT's output is zero, and a frozen one's would stay so
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
            parameter.data = parameter.data.to(settings.get("dtype", torch.float64))
    if settings.get("dense"):
        return dense
    config = KindConfig(
        num_classes=CLASSES,
        learngene_rank=4,
        tailor_rank=2,
        targets="paper+adaln",
        gate_map=settings.get("gate_map"),
        init="random",
    )
    tailors = None
    if settings.get("made_with_its_own"):
        size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if size > 1:
            tailors = Placement.for_data(config.tailor_of, dataset_of(settings).labels, size).tailors(rank)
    model = make_decomposable(dense, config, torch.Generator().manual_seed(0), tailors=tailors)
    return model.freeze_learngene() if settings.get("frozen") else model


def dataset_of(settings: dict[str, Any]) -> ArrayDataset:
    whole = data()
    return whole.subset(whole.class_names) if settings.get("frozen") else whole


def run(case: str, out: Path, **more: Any) -> TrainResult:
    settings = {**CASES[case], **more}
    resume, progress = settings.pop("resume", False), settings.pop("progress", None)
    config = TrainConfig(**{**BASE, **{key: value for key, value in settings.items() if key not in _MODEL}})
    # The default backend's C++ for this step takes two minutes; it is tested in core/test_compile.py.
    with mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
        return train(model_of(settings), dataset_of(settings), config, out, resume=resume, progress=progress)


class Slow(NoProgress):
    """Gives whoever wants to stop the run the time for it."""

    def update(self, done: int, *figures: float | None) -> None:
        time.sleep(0.05)


@contextmanager
def counting(out: Path) -> Iterator[None]:
    """Leaves in ``counted-RANK.json`` what this process sums with others, and what it holds at the end, in bytes."""
    found: dict[str, int] = {"summed": 0}
    all_reduce, begin, finish = dist.all_reduce, DistributedDataParallel.__init__, trainer._Run.finish

    def summing(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found["summed"] += tensor.nbytes
        return all_reduce(tensor, *args, **kwargs)

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        return allreduce_hook(None, bucket)  # by the all_reduce above

    def hooked(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.register_comm_hook(None, hook)

    def weighed(self: Any) -> TrainResult:
        parts = {"model": self.model.state_dict(), "optimizer": self.stepper.optimizer.state()}
        for name, state in {**parts, "ema": self.stepper.ema.state()}.items():
            found[name] = sum(value.nbytes for value in state.values())
        return finish(self)

    dist.all_reduce, DistributedDataParallel.__init__, trainer._Run.finish = summing, hooked, weighed
    yield
    dist.all_reduce, DistributedDataParallel.__init__, trainer._Run.finish = all_reduce, begin, finish
    (out / f"counted-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = ArgumentParser()
    for flag in ("--slow", "--resume"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="+")
    asked = parser.parse_args()
    rank = os.environ["RANK"]
    for name in asked.cases:
        folder = asked.out / name
        more: dict[str, Any] = {"checkpoint_every": 2, "progress": Slow()} if asked.slow else {}
        more |= {"resume": "latest"} if asked.resume and (folder / "run.json").exists() else {}
        if asked.slow:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"pid-{rank}.txt").write_text(str(os.getpid()))
        with counting(folder) if name.endswith("-counted") else nullcontext():
            run(name, folder, **more)
