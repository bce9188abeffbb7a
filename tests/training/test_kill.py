"""Killed (kill -9) at random moments and in the middle of writing a checkpoint, a run ends as if nothing had been."""

import importlib.util
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kindgene.progress import NoProgress
from kindgene.training.checkpoint import latest_checkpoint

KILLS = 30
BASE = {"steps": 60, "checkpoint_every": 2, "checkpoints_total_limit": 3, "log_every": 1}


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
    several.run("data", out, resume="latest" if there else False, **BASE, **more)


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


def assert_same(whole: Path, cut: Path) -> None:
    one, other = latest_checkpoint(whole / "checkpoints"), latest_checkpoint(cut / "checkpoints")
    assert one is not None
    assert other is not None
    assert one.step == other.step == BASE["steps"]
    for name in one.names:
        mine, theirs = one.tensors(name), other.tensors(name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    mine_log, their_log = ((out / "log.jsonl").read_text().splitlines() for out in (whole, cut))
    assert len(mine_log) == len(their_log) == BASE["steps"]


@pytest.mark.slow
def test_at_thirty_random_moments(tmp_path: Path) -> None:
    train(tmp_path / "whole")
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
            assert step_of(out) == BASE["steps"]
            out = tmp_path / f"cut-{kills}"  # and again, until there were enough kills
            continue
        kills += 1
    train(out)
    assert_same(tmp_path / "whole", out)


def test_in_the_middle_of_writing_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that changes the disk between two checkpoints of a run, one after the other."""
    train(tmp_path / "whole")
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
        deaths += 1
    assert deaths >= 20
    assert_same(tmp_path / "whole", out)
