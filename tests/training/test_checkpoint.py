"""A checkpoint is whole or not there; a damaged one is passed over for the one before."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kindgene
from kindgene.training import checkpoint as module
from kindgene.training.checkpoint import latest_checkpoint, limit_checkpoints, save_checkpoint


def save(folder: Path, step: int) -> Path:
    values = {"a": torch.full((64,), float(step)), "b": torch.arange(5)}
    return save_checkpoint(folder, step, {"model": values, "other": {"x": torch.ones(3)}}, {"note": step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (5, 10, 100_000_000):
        save(tmp_path, step)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.state, found.names) == (100_000_000, {"note": 100_000_000}, ("model", "other"))
    assert torch.equal(found.tensors("model")["a"], torch.full((64,), 1e8))
    assert names(tmp_path) == ["step-00000005", "step-00000010", "step-100000000"]
    assert names(found.path) == ["model.safetensors", "other.safetensors", "state.json"]


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
        limit_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    limit_checkpoints(tmp_path, None)
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("file", ["model.safetensors", "other.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    whole = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[:-1])
    else:
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    with caplog.at_level(logging.WARNING):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    if (file, damage) == ("state.json", "truncated"):  # only the last newline is gone: all of it is there
        assert found.step == 2
        return
    assert found.step == 1
    assert file in caplog.text
    save(tmp_path, 2)  # takes the damaged one's place
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_none_whole_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="none of 2 checkpoints is whole") as error:
        latest_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_a_later_format_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT", 2)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is of format 2, this version of kindgene reads 1"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("failing", ["write_json", "write_safetensors"])
def test_a_full_disk_leaves_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    save(tmp_path, 1)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.files, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from kindgene.training import checkpoint

moment, folder = int(sys.argv[1]), Path(sys.argv[2])
calls = 0
sync = os.fsync
def count(handle):
    global calls
    calls += 1
    if calls == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)
os.fsync = count
rename = Path.rename
def last(self, to):
    if moment == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, to)
Path.rename = last
values = {"a": torch.full((64,), 2.0), "b": torch.arange(5)}
checkpoint.save_checkpoint(folder, 2, {"model": values, "other": {"x": torch.ones(3)}}, {"note": 2})
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is of POSIX")
@pytest.mark.parametrize("moment", [0, 1, 4, 7])  # before the rename; at the 1st, 4th, last flush (after it)
def test_kill_while_writing(tmp_path: Path, moment: int) -> None:
    save(tmp_path, 1)
    source = str(Path(kindgene.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-c", KILLED, str(moment), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == (2 if moment == 7 else 1)
    save(tmp_path, 3)
    assert not [name for name in names(tmp_path) if name.startswith(".tmp-")]
