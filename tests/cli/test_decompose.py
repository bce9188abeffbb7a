"""kindgene decompose: a run becomes a pool that says where it came from, or nothing at all."""

import json
import shutil

import pytest
import torch

from kindgene import Pool
from kindgene.training.checkpoint import latest_checkpoint

SMALL = ("--classes", "0,1", "--preset", "tiny/2", "--batch-size", 4, "--steps", 2)


def test_the_pool_is_the_run(kindgene, run, tmp_path):
    told = kindgene("decompose", run, "--out", tmp_path / "pool").out
    pool = Pool.from_pretrained(tmp_path / "pool")
    assert pool.classes == ("0", "1", "2")
    assert pool.config.weights == "ema"
    assert pool.config.provenance["step"] == 3
    assert pool.config.provenance["config"]["seed"] == 0
    assert pool.config.provenance["data"]["class_names"] == ["0", "1", "2"]
    assert pool.config.learngene_id[:16] in told
    assert "ema weights of step 3" in told


def test_ema_or_raw(kindgene, run, tmp_path):
    raw = latest_checkpoint(run / "checkpoints").tensors("model")["module.x_embedder.proj.bias"]
    found = {}
    for weights in ("ema", "raw"):
        kindgene("decompose", run, "--out", tmp_path / weights, "--weights", weights)
        pool = Pool.from_pretrained(tmp_path / weights)
        assert pool.config.weights == weights
        found[weights] = pool.learngene["x_embedder.proj.bias"]
    assert torch.equal(found["raw"], raw)
    assert not torch.equal(found["ema"], raw)


def test_a_run_without_ema(kindgene, refused, tmp_path):
    kindgene("pretrain", "--out", tmp_path / "run", *SMALL, "--set", "ema_decay=0")
    assert "ask for the raw ones" in refused("decompose", tmp_path / "run", "--out", tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
    kindgene("decompose", tmp_path / "run", "--out", tmp_path / "pool", "--weights", "raw")
    assert Pool.from_pretrained(tmp_path / "pool").config.weights == "raw"


def test_what_cannot_be_taken_apart(kindgene, refused, run, shared_pool, tmp_path):
    out = ("--out", tmp_path / "pool")
    kindgene("pretrain", "--out", tmp_path / "dense", *SMALL, "--dense")
    assert "dense model" in refused("decompose", tmp_path / "dense", *out)
    assert "is not the folder of a run" in refused("decompose", shared_pool, *out)
    assert "is not the folder of a run" in refused("decompose", tmp_path / "nowhere", *out)
    assert "must be 'ema' or 'raw'" in refused("decompose", run, *out, "--weights", "best")
    assert not (tmp_path / "pool").exists()


def test_what_is_there_is_not_touched(refused, run, pool, tree):
    before = tree(pool)
    assert "not an empty folder" in refused("decompose", run, "--out", pool)
    assert tree(pool) == before


@pytest.mark.parametrize("there", ["", "learngene.safetensors", "README.md"])
def test_a_full_disk_leaves_no_pool(refused, full_disk, run, tree, tmp_path, there):
    mine = shutil.copytree(run, tmp_path / "run")
    before = tree(mine)
    full_disk(when=(tmp_path / "pool" / there).exists)
    assert "No space left on device" in refused("decompose", mine, "--out", tmp_path / "pool")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert tree(mine) == before


def test_a_transferred_run_becomes_a_pool_too(kindgene, shared_pool, tmp_path):
    new = ("--classes", "6,7", "--steps", 1, "--batch-size", 4, "--out", tmp_path / "new")
    kindgene("transfer", shared_pool, *new)
    kindgene("decompose", tmp_path / "new", "--out", tmp_path / "pool")
    assert list(json.loads((tmp_path / "pool" / "config.json").read_text())["classes"]) == ["6", "7"]
