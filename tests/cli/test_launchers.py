"""From a folder of images to a pool, however the command is launched: python, torchrun, accelerate launch."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kindgene import Pool
from kindgene.training.checkpoint import latest_checkpoint

LAUNCHERS = {
    "python": (),
    "torchrun": ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port={port}"),
    "accelerate": (
        *("-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port={port}"),
    ),
}
CHOSEN = ("--image-size", "8", "--preset", "tiny/2", "--steps", "4", "--batch-size", "6", "--set", "num_workers=1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog", "emu")):
        (root / name).mkdir()
        for count in range(5 if name != "emu" else 1):  # a class of one image
            pixels = chance.integers(0, 120, (12, 16, 3)).astype(np.uint8)
            pixels[..., number] += 120
            Image.fromarray(pixels).save(root / name / f"{count}.{'jpg' if count else 'png'}")
    return root


def launch(launcher: str, *arguments: str | Path) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *(part.format(port=port) for part in LAUNCHERS[launcher]), "-m", "kindgene"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment.pop("CI", None)
    ended = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_every_launcher_trains_the_same_model(kindgene: Any, photos: Path, tmp_path: Path) -> None:
    weights = {}
    for launcher, more in (
        ("python", ()),
        ("torchrun", ("--set", "parallel=tailor")),
        ("accelerate", ("--set", "shard_learngene=true")),
    ):
        out = tmp_path / launcher
        told = launch(launcher, "pretrain", "--data", photos, *CHOSEN, *more, "--out", out)
        assert told.count("4 steps, final loss") == 1  # the main process speaks
        found = latest_checkpoint(out / "checkpoints")
        assert found is not None
        weights[launcher] = found.tensors("ema")
    for launcher in ("torchrun", "accelerate"):
        assert weights[launcher].keys() == weights["python"].keys()
        for key, value in weights["python"].items():
            mine, theirs = value.double(), weights[launcher][key].double()
            assert (mine - theirs).norm() <= 1e-3 * mine.norm() + 1e-6, (launcher, key)
    kindgene("decompose", tmp_path / "torchrun", "--out", tmp_path / "pool")
    pool = Pool.from_pretrained(tmp_path / "pool")
    assert pool.classes == ("cat", "dog", "emu")
    model = pool.recombine(["emu"])
    assert torch.isfinite(model(torch.zeros(1, 3, 8, 8), torch.tensor([5]), torch.tensor([0]))).all()
