"""kindgene study --scale imagenet: the protocol on a fake ImageNet of tiny images, and what is refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from kindgene.data.imagenet import imagenet_classes, superclasses_of
from kindgene.studies import ablate, agnostic, deploy, imagenet_source, pretraining, transfers

EACH = 4


@pytest.fixture(scope="module")
def given(tiny_vae, tmp_path_factory):
    """Folders in ImageNet's and the far sets' layout, and a VAE of four latent channels, halving."""
    root = tmp_path_factory.mktemp("given")
    for place, one in enumerate(imagenet_classes()):
        folder = root / "imagenet" / "train" / one.wnid
        folder.mkdir(parents=True)
        for number in range(EACH):
            colour = (place % 256, place // 256, 60 * number)
            Image.new("RGB", (9, 8), colour).save(folder / f"{one.wnid}_{number}.png", compress_level=0)
    for name in imagenet_source.FAR:
        (root / "far" / name).mkdir(parents=True)
        for number in range(60):
            Image.new("RGB", (8, 8), (4 * number, 0, 0)).save(root / "far" / name / f"{number}.png", compress_level=0)
    tiny_vae(sample_size=8).save_pretrained(root / "vae")
    return SimpleNamespace(
        data=("--scale", "imagenet", "--data", root / "imagenet"), vae=("--vae", root / "vae"), far=root / "far"
    )


TINY = {
    "classes": 3,
    "samples": 2,
    "sampling_steps": 2,
    "image_size": 4,
    "patch_size": 2,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "learngene_rank": 4,
    "tailor_rank": 1,
    "steps": 3,
    "batch_size": 4,
    "num_workers": 0,
    "mixed_precision": "no",
}


@pytest.fixture
def tiny(monkeypatch):
    """The scale at sizes for a test."""
    monkeypatch.setattr(imagenet_source, "PIXELS", 8)
    few = {"milestones": (0.5, 1.0), "draws": 1}
    for module, settings in ((pretraining, {**TINY, **few}), (agnostic, TINY)):
        monkeypatch.setattr(module, "SCALES", {"imagenet": replace(module.SCALES["imagenet"], **settings)})
    for module in (deploy, ablate):  # sizes are the pretrain study's
        monkeypatch.setattr(module, "SCALES", {"imagenet": module.SCALES["tiny"]})
    transfer = {
        "tasks": 1,
        "task_classes": 2,
        "steps": 2,
        "batch_size": 4,
        "milestones": (0.5, 1.0),
        "whole_grid": False,
        "cost_rounds": 1,
    }
    rows = {"novel_rows": ("kind", "full_finetune", "auto_lg"), "shift_rows": ("kind",)}
    monkeypatch.setattr(transfers, "SCALES", {"imagenet": replace(transfers.SCALES["imagenet"], **transfer, **rows)})


def test_a_dry_run_counts_what_is_there_and_leaves_nothing(kindgene, given, tmp_path, tiny):
    told = json.loads(kindgene("study", "pretrain", *given.data, "--out", tmp_path / "x", "--dry-run").out)
    assert told["data"]["base"] == {"superclasses": 150, "folders": 263, "of": 263, "images": 263 * EACH}
    assert told["data"]["novel"]["superclasses"] == 461
    assert told["cells"] == 1 + 4 + 4
    assert (told["in_channels"], told["prediction"], told["learn_sigma"]) == (4, "epsilon", True)
    assert told["models"]["decomposable"]["parameters"] > 0
    assert told["estimate"]["memory"]["total"] > 0
    novel = json.loads(kindgene("study", "novel", *given.data, "--out", tmp_path / "x", "--dry-run").out)
    assert novel["pretraining"]["models"] == told["models"]
    assert not (tmp_path / "x").exists()


def test_pretraining_and_novel_classes_from_folders_to_figures(kindgene, given, tmp_path, tiny):
    command = (*given.data, *given.vae, "--out", tmp_path)
    kindgene("study", "pretrain", *command, "--cells", "decomposable/final")
    cell = json.loads((tmp_path / "pretrain/imagenet-seed0/cells/decomposable/final.json").read_text())
    assert cell["settings"]["source"]["vae"]["name"] == "vae"
    assert cell["settings"]["source"]["extractor"]["name"] == "pixels"
    assert set(cell["result"]["fd"]) == {"1.0", "1.5"}
    assert cell["result"]["rate"] == 1e-4
    told = kindgene("study", "novel", *command).out
    assert f"novel-0: {superclasses_of('novel')[0].name}, " in told
    assert (
        "Recognised: by a linear classifier on the features of pixels"
        in (tmp_path / "novel/imagenet/README.md").read_text()
    )
    kindgene("study", "pretrain", *command)
    report = (tmp_path / "pretrain/imagenet/README.md").read_text()
    assert "3 superclasses of ImageNet (8x8 pixels as latents of vae; held out: of each class 4%" in report
    assert "squared error of the noise" in report
    assert "`kindgene study pretrain --scale imagenet --data FOLDER --vae vae --seeds 1`" in report


def test_far_sets_and_the_nine_combinations(kindgene, given, tmp_path, tiny):
    command = (*given.data, *given.vae, "--out", tmp_path)
    told = kindgene("study", "shift", *command, "--far", given.far).out
    for name in imagenet_source.FAR:
        assert f"{name}: test loss of KIND" in told
    assert "Real test images: a single class, FD" in told  # one class: nothing to recognise
    assert "no components, null row" in kindgene("study", "agnostic", *command).out


def test_deployment_and_ablation(kindgene, given, tmp_path, tiny):
    command = (*given.data, *given.vae, "--out", tmp_path)
    for study, cell in (("deploy", "1/kind"), ("ablate", "groups")):
        assert json.loads(kindgene("study", study, *command, "--dry-run").out)["pretraining"]["estimate"]
        kindgene("study", study, *command, "--cells", cell)
        found = json.loads((tmp_path / study / "imagenet-seed0" / "cells" / f"{cell}.json").read_text())["result"]
        assert found["test"] > 0
        assert set(found["fd"]) == {"1.0", "1.5"}


def test_what_the_scale_needs_and_what_others_do_not_take(refused, given, tmp_path):
    out = ("--out", tmp_path / "x")
    assert "needs ImageNet-1K: name its folder with --data" in refused("study", "pretrain", "--scale", "imagenet", *out)
    assert "name the VAE that makes them with --vae" in refused("study", "pretrain", *given.data, *out)
    assert "name their folder with --far" in refused("study", "shift", *given.data, *given.vae, *out)
    mini = refused("study", "pretrain", "--scale", "mini", *given.vae, *out)
    assert "--vae is for --scale imagenet; at --scale mini the data come with the package" in mini
    assert "no scale 'imagenet'" in refused("study", "elastic", *given.data, *out)
    empty = ("--scale", "imagenet", "--data", tmp_path, *given.vae)
    assert "holds no folders of ImageNet's classes" in refused("study", "pretrain", *empty, *out)
    weights = ("--weights", tmp_path / "none.pth")
    assert "there is no file" in refused("study", "pretrain", *given.data, *given.vae, *weights, *out)
    assert not (tmp_path / "x").exists()
