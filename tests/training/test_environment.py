"""What is told of the machine is true, harmless, and never in the way."""

import json
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kindgene import __version__
from kindgene.training import environment as module
from kindgene.training.environment import environment, git_state, memory_in_use, variables, without_secrets


def test_what_is_told() -> None:
    found = json.loads(json.dumps(environment(2), allow_nan=False))
    assert found["versions"]["kindgene"] == __version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == torch.__version__
    assert {"accelerate", "diffusers", "numpy", "safetensors"} <= found["versions"].keys()
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert len(found["machine"]["gpus"]) == torch.cuda.device_count()
    assert found["processes"] == 2
    assert found["command"] == without_secrets(sys.argv)


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@e", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    run = subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_state_of_git(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {"commit": None, "branch": "main", "dirty": False}
    (tmp_path / "a file").write_text("one")
    git(tmp_path, "add", ".")
    assert git_state(tmp_path) == {"commit": None, "branch": "main", "dirty": True}
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "new").write_text("not tracked")
    assert git_state(tmp_path) == {"commit": commit, "branch": "main", "dirty": False}
    (tmp_path / "a file").write_text("two")
    (tmp_path / "below").mkdir()
    assert git_state(tmp_path / "below") == {"commit": commit, "branch": "main", "dirty": True}
    git(tmp_path, "checkout", "-q", "--detach")
    assert git_state(tmp_path) == {"commit": commit, "branch": None, "dirty": True}


def test_no_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path()) is None
    assert environment()["git"] is None


def test_a_git_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.05)
    assert module._output(sys.executable, "-c", "import time; time.sleep(5)") is None
    assert module._output(sys.executable, "-c", "raise SystemExit(1)") is None


def test_no_secret_is_told() -> None:
    values = {
        "OMP_NUM_THREADS": "2",
        "NCCL_DEBUG": "INFO",
        "NCCL_SECRET": "x",
        "ACCELERATE_TOKEN": "x",
        "HF_TOKEN": "x",
        "WANDB_API_KEY": "x",
        "HOME": "/home/me",
    }
    assert variables(values) == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "2"}
    command = ["kindgene", "push", "pool", "--hub-token", "abc", "--api_key=abc", "--steps", "3", "token"]
    hidden = ["kindgene", "push", "pool", "--hub-token", "*", "--api_key=*", "--steps", "3", "token"]
    assert without_secrets(command) == hidden
    assert without_secrets(["x", "--token", "--steps", "3"]) == ["x", "--token", "--steps", "3"]


def test_memory_in_use() -> None:
    device = torch.device("cpu")
    before = memory_in_use(device)
    assert 10**7 < before < 10**11
    held = torch.ones(32 * 2**20)
    after = memory_in_use(device)
    assert after - before > 0.9 * held.numel() * 4
    assert module._largest_resident() >= 0.9 * after


def test_memory_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert memory_in_use(torch.device("cpu")) >= largest
