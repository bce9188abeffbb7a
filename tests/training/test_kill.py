"""Killed (kill -9) at random moments and in the middle of writing a checkpoint, a run ends as if nothing had been."""

import importlib.util
import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch

from kindgene.progress import NoProgress
from kindgene.training.checkpoint import Checkpoint, open_checkpoint

KILLS = 30
KEPT = 3
BASE = {"steps": 60, "checkpoint_every": 2, "checkpoints_total_limit": KEPT, "log_every": 1}


def load() -> ModuleType:
    path = Path(__file__).parent / "programs" / "several.py"
    spec = importlib.util.spec_from_file_location("several_to_kill", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


several = load()


class Slow(NoProgress):
    """Makes steps long enough to be hit."""

    def update(self, done: int, *figures: float | None) -> None:
        time.sleep(0.01)


def train(out: Path, **more: Any) -> None:
    there = any((out / name).exists() for name in ("checkpoints", "run.json", "log.jsonl"))
    several.run("data", out, resume="latest" if there else False, **{**BASE, **more})


def in_a_child(work: Callable[[], None]) -> int:
    """The process id of a child that does the work and ends without returning."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def step_of(out: Path) -> int:
    return max((int(path.name[5:]) for path in out.glob("checkpoints/step-*")), default=-1)


def checkpoints(out: Path) -> dict[str, Checkpoint]:
    """Every finished checkpoint, its files found whole."""
    return {path.name: open_checkpoint(path) for path in sorted(out.glob("checkpoints/step-*"))}


def state_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that is beside the tensors; timings exempt, and how many checkpoints are kept."""
    state = json.loads(json.dumps(checkpoint.state))
    assert state.pop("seconds") >= 0
    state["identity"]["config"].pop("checkpoints_total_limit")
    return cast(dict[str, Any], state)


def assert_so_far(whole: Path, cut: Path) -> None:
    """Every checkpoint of a run is, bit for bit, that of the uninterrupted one, which kept all of its own."""
    expected = checkpoints(whole)
    for name, found in checkpoints(cut).items():
        one = expected[name]
        assert (one.step, one.contents, state_of(one)) == (found.step, found.contents, state_of(found))
        for part in one.names:
            mine, theirs = one.tensors(part), found.tensors(part)
            assert mine.keys() == theirs.keys()
            assert all(same_bits(mine[key], theirs[key]) for key in mine), (name, part)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    kinds = (one.dtype, one.shape) == (other.dtype, other.shape)
    return kinds and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def assert_same(whole: Path, cut: Path) -> None:
    """And it kept the latest ones, and its log is the other's line by line; timings exempt."""
    assert_so_far(whole, cut)
    assert list(checkpoints(cut)) == list(checkpoints(whole))[-KEPT:]
    assert step_of(cut) == BASE["steps"]
    one, other = log(whole), log(cut)
    assert len(one) == BASE["steps"]
    assert one == other


def log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(line.pop("images_per_second") > 0 for line in lines)
    return lines


@pytest.mark.slow
def test_at_thirty_random_moments(tmp_path: Path) -> None:
    train(tmp_path / "whole", checkpoints_total_limit=None)
    chance = random.Random(0)
    out = tmp_path / "cut"
    kills = 0
    while kills < KILLS:
        child = in_a_child(partial(train, out, progress=Slow()))
        deadline = time.monotonic() + chance.uniform(0.05, 0.5)
        while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):  # it was done before
            assert_same(tmp_path / "whole", out)
            out = tmp_path / f"cut-{kills}"  # and again, until there were enough kills
            continue
        kills += 1
        assert_so_far(tmp_path / "whole", out)
    train(out)
    assert_same(tmp_path / "whole", out)


def test_in_the_middle_of_writing_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that changes the disk between two checkpoints of a run, one after the other."""
    train(tmp_path / "whole", checkpoints_total_limit=None)
    out = tmp_path / "cut"
    calls = {"fsync": os.fsync, "mkdir": os.mkdir, "rename": os.rename, "replace": os.replace, "unlink": os.unlink}
    deaths = 0
    while True:

        def work(at: int = deaths) -> None:
            seen = 0

            def dying(name: str) -> Any:
                def call(*args: Any, **kwargs: Any) -> Any:
                    nonlocal seen
                    seen += 1
                    if seen == at + 12:  # past what resuming itself writes
                        os.kill(os.getpid(), signal.SIGKILL)
                    return calls[name](*args, **kwargs)

                return call

            for name in calls:
                monkeypatch.setattr(os, name, dying(name))
            train(out)

        _, status = os.waitpid(in_a_child(work), 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert_so_far(tmp_path / "whole", out)
        deaths += 1
    assert deaths >= 20
    assert_same(tmp_path / "whole", out)
