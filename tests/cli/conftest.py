"""The command line called in this process, and the smallest run, pool and image folder that it works with."""

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
import safetensors.torch
from PIL import Image
from safetensors import SafetensorError

from kindgene.cli.main import main

SMALL = ("--preset", "tiny/2", "--steps", 3, "--batch-size", 8)


def _call(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["kindgene", *map(str, arguments)])
        patch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stopped:
            main()
    return SimpleNamespace(code=stopped.value.code or 0, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="session")
def kindgene():
    """Runs `kindgene ARGUMENTS` and returns its exit code and what it wrote; fails unless it exits with `code`."""

    def call(*arguments, code=0):
        result = _call(*arguments)
        assert result.code == code, result
        assert "Traceback" not in result.err
        return result

    return call


@pytest.fixture(scope="session")
def refused():
    """Runs a command that is bad input, and returns its one line."""

    def call(*arguments):
        result = _call(*arguments)
        assert (result.code, result.out) == (2, ""), result
        assert result.err.startswith("kindgene: "), result
        assert result.err.count("\n") == 1, result
        assert result.err.endswith("\n"), result
        return result.err

    return call


@pytest.fixture(scope="session")
def start():
    """Starts `kindgene ARGUMENTS` as a process of its own, with one thread as this one has."""

    def popen(*arguments):
        command = [sys.executable, "-c", "from kindgene.cli.main import main; main()", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return popen


@pytest.fixture(scope="session")
def tree():
    """What a folder holds: name -> SHA-256 of each file, None for each folder."""

    def read(folder):
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            for path in sorted(folder.rglob("*"))
            if path.name != ".lock"
        }

    return read


@pytest.fixture
def full_disk(monkeypatch):
    """Makes the disk full once `when()` holds, which is noticed on the next "flush" or "write" of a file.

    Python says the first; safetensors, which writes by itself, the second, by an exception of its own.
    """
    save, fsync = safetensors.torch.save_file, os.fsync

    def fill(noticed="flush", when=lambda: True):
        def limited_save(*arguments, **options):
            if noticed == "write" and when():
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
            return save(*arguments, **options)

        def limited_fsync(handle):
            if noticed == "flush" and when():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return fsync(handle)

        monkeypatch.setattr("safetensors.torch.save_file", limited_save)
        monkeypatch.setattr("os.fsync", limited_fsync)

    return fill


@pytest.fixture(scope="session")
def run(kindgene, tmp_path_factory):
    """A run of three steps on the digits 0, 1 and 2. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    kindgene("pretrain", "--classes", "0,1,2", "--out", folder, *SMALL)
    return folder


@pytest.fixture(scope="session")
def shared_pool(kindgene, run, tmp_path_factory):
    """The run's pool. Not to be changed."""
    folder = tmp_path_factory.mktemp("pools") / "pool"
    kindgene("decompose", run, "--out", folder)
    return folder


@pytest.fixture
def pool(shared_pool, tmp_path):
    """A pool of one's own."""
    return shutil.copytree(shared_pool, tmp_path / "pool")


@pytest.fixture(scope="session")
def merged(kindgene, shared_pool, tmp_path_factory):
    """A merged model of the digit 1. Not to be changed."""
    folder = tmp_path_factory.mktemp("merged") / "one"
    kindgene("recombine", shared_pool, "--classes", "1", "--form", "merged", "--out", folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of grey images, four a class; the classes: "cat", "tench, Tinca tinca" and "zebra"."""
    root = tmp_path_factory.mktemp("data") / "images"
    for place, name in enumerate(("cat", "tench, Tinca tinca", "zebra")):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 80 * place + 10 * number).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def fish_pool(kindgene, images, tmp_path_factory):
    """A pool of the classes "cat" and "tench, Tinca tinca". Not to be changed."""
    root = tmp_path_factory.mktemp("fish")
    names = r"tench\, Tinca tinca,cat"
    look = ("--data", images, "--image-size", 8, "--set", "channels=1")
    kindgene("pretrain", *look, "--classes", names, "--out", root / "run", *SMALL)
    kindgene("decompose", root / "run", "--out", root / "pool")
    return root / "pool"
