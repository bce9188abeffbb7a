"""kindgene pretrain --recipe: every row runs, ImageNet's from folders to a picture; what is wrong is refused."""

import json

import pytest
from PIL import Image

from kindgene.data.imagenet import imagenet_classes, needed_folders, superclasses_of
from kindgene.data.latents import load_latents
from kindgene.recipes import RECIPES

QUICK = ("--preset", "tiny/2", "--steps", 2, "--batch-size", 2, "--learngene-rank", 4, "--tailor-rank", 2)
TESTED = (*QUICK, "--set", "num_workers=0", "--image-size", 8)


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """ImageNet in its layout, train/n01440764/..., of tiny images: one a class."""
    root = tmp_path_factory.mktemp("imagenet")
    for place, one in enumerate(imagenet_classes()):
        folder = root / "train" / one.wnid
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 8), (place % 256, place // 256, 128)).save(folder / f"{one.wnid}_{place}.JPEG")
    return root


@pytest.fixture(scope="session")
def vae(tiny_vae, tmp_path_factory):
    """Of four latent channels, halving."""
    folder = tmp_path_factory.mktemp("vae") / "vae"
    tiny_vae(sample_size=8).save_pretrained(folder)
    return folder


def facts_of(run):
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("imagenet")])
def test_imagenet_from_folders_to_a_picture(kindgene, imagenet, vae, tmp_path, name):
    run = tmp_path / "run"
    kindgene("pretrain", "--recipe", name, "--data", imagenet, "--vae", vae, "--out", run, *TESTED)
    facts = facts_of(run)
    names = [row.name for row in superclasses_of("base")]
    assert facts["data"]["class_names"] == names
    assert facts["data"]["images"] == len(needed_folders("base"))
    assert facts["model"]["backbone"]["time_frequencies"] == "diffusers"
    assert (facts["model"]["backbone"]["in_channels"], facts["model"]["backbone"]["input_size"]) == (4, 4)
    assert facts["model"]["kind"]["targets"] == "paper+adaln"
    assert facts["config"]["ema_decay"] == 0.9999
    assert facts["config"]["learning_rate"] == 1e-4
    assert facts["config"]["mixed_precision"] == "bf16"
    if name == "imagenet-dit-b4":
        pool, novel = tmp_path / "pool", tmp_path / "novel"
        kindgene("decompose", run, "--out", pool)
        look = ("--vae", vae, "--image-size", 8, "--classes", "big cat,shark", "--out", novel)
        kindgene("encode", "--data", imagenet, "--superclasses", "novel", *look)
        assert load_latents(novel).counts() == {"big cat": 6, "shark": 3}
        short = ("--steps", 1, "--batch-size", 2, "--out", tmp_path / "more")
        kindgene("transfer", pool, "--data", novel, *short, "--add")
        drawing = ("--classes", "parrot,shark", "--per-class", 1, "--steps", 2)
        kindgene("sample", tmp_path / "pool", *drawing, "--vae", vae, "--out", tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as picture:
            assert (picture.size, picture.mode) == ((8, 16), "RGB")


def test_imagenet_encoded_once_for_every_split(kindgene, refused, imagenet, vae, tmp_path):
    """All classes by their WordNet ids; superclasses are made of them when training begins."""
    latents = tmp_path / "latents"
    kindgene("encode", "--data", imagenet / "train", "--vae", vae, "--image-size", 8, "--out", latents)
    assert len(load_latents(latents).class_names) == 1000
    chosen = ("--recipe", "imagenet-dit-b4", "--data", latents, *TESTED)
    for split, count in (("base", 150), ("novel", 461)):
        told = kindgene("pretrain", *chosen, "--out", tmp_path / "x", "--set", f"superclasses={split}", "--dry-run").out
        facts = json.loads(told)
        assert (facts["kind"]["num_classes"], facts["shape"]) == (count, [4, 4, 4])
        assert facts["expect"].startswith("Not known for this run, which has its own preset, ")
        assert "The recipe unchanged: By others" in facts["expect"]
        assert facts["estimate"]["memory"]["total"] > 0
    kindgene("pretrain", *chosen, "--classes", "parrot,cat", "--out", tmp_path / "two")
    assert facts_of(tmp_path / "two")["data"]["class_names"] == ["parrot", "cat"]
    assert "no class 'shark'" in refused("pretrain", *chosen, "--classes", "shark", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_any_latents(kindgene, images, vae, tmp_path):
    """Made on the way or before; and the pictures are decoded where there is a --vae."""
    look = ("--recipe", "latents", *QUICK, "--set", "num_workers=0", "--set", "sample_every=2")
    for data in (images, tmp_path / "whole" / "latents"):
        size = () if data != images else ("--image-size", 8)
        out = tmp_path / ("whole" if data == images else "again")
        kindgene("pretrain", *look, *size, "--data", data, "--vae", vae, "--out", out)
        facts = facts_of(out)
        assert (facts["model"]["backbone"]["in_channels"], facts["model"]["backbone"]["input_size"]) == (4, 4)
        assert facts["data"]["flip"] is True
        with Image.open(out / "samples" / "step-00000002.png") as picture:
            assert picture.size == (4 * 64, 3 * 64)  # decoded: cells of 8 pixels, enlarged
    kindgene("pretrain", *look, "--data", data, "--out", tmp_path / "bare")
    one, other = (tmp_path / name / "samples" / "step-00000002.png" for name in ("again", "bare"))
    assert one.read_bytes() != other.read_bytes()
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "again", "bare")
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("name", ["digits", "glyphs", "folder-32"])
def test_recipes_of_pixels(kindgene, images, tmp_path, name):
    run = tmp_path / "run"
    chosen = {
        "digits": ("--classes", "0,1"),
        "glyphs": ("--classes", "G,S"),
        "folder-32": ("--data", images, "--image-size", 8),
    }[name]
    kindgene("pretrain", "--recipe", name, *chosen, *QUICK, "--set", "num_workers=0", "--out", run)
    facts = facts_of(run)
    assert facts["config"]["steps"] == 2
    assert facts["model"]["backbone"]["prediction"] == "v"
    assert facts["config"]["schedule"] == RECIPES[name].train.get("schedule", "constant")


def test_any_other_setting_is_set(kindgene, tmp_path):
    run = tmp_path / "run"
    chosen = ("betas=0.9,0.95", "weight_decay=0.01", "on_nonfinite=skip", "train.schedule=constant", "depth=1")
    assigned = [part for text in chosen for part in ("--set", text)]
    kindgene("pretrain", "--classes", "0,1", *QUICK, *assigned, "--set", "parallel=tailor", "--out", run)
    facts = facts_of(run)
    config = facts["config"]
    assert (config["betas"], config["weight_decay"], config["on_nonfinite"]) == ([0.9, 0.95], 0.01, "skip")
    assert (config["schedule"], config["parallel"], facts["model"]["backbone"]["depth"]) == ("constant", "tailor", 1)


def test_a_run_goes_on_from_the_checkpoint_that_is_named(kindgene, refused, tmp_path):
    run = tmp_path / "run"
    look = ("--classes", "0,1", *QUICK, "--checkpointing-steps", 1, "--out", run)
    kindgene("pretrain", *look)
    log = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    kindgene("pretrain", *look, "--resume", run / "checkpoints" / "step-00000001")
    assert [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()] == log
    assert "is not a checkpoint of" in refused("pretrain", *look, "--resume", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (("--recipe", "imagenet-dit-b"), "did you mean 'imagenet-dit-b4'"),
        (("--recipe", "folder-32"), "say what to train on with --data"),
        (("--recipe", "imagenet-dit-b4", "--data", "."), "name the VAE that makes them with --vae"),
        (("--set", "ema_decy=0"), "nearest: ema_decay"),
        (("--set", "steps=3"), "it has an option of its own, --steps"),
        (("--set", "diagnose_every=3"), "no multiple of log_every"),
        (("--report-to", "paper"), "each of report_to must be one of 'tensorboard'"),
        (("--set", "parallel=model"), "parallel takes data or tailor"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_leaves_nothing(refused, tmp_path, choice, told):
    assert told in refused("pretrain", *choice, "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_an_imagenet_with_missing_folders(refused, imagenet, vae, tmp_path):
    chosen = ("pretrain", "--recipe", "imagenet-dit-b4", "--vae", vae, *TESTED, "--out", tmp_path / "run")
    assert "holds no folders of ImageNet's classes" in refused(*chosen, "--data", tmp_path)
    broken = tmp_path / "imagenet"
    broken.mkdir()
    for wnid in needed_folders("base")[1:]:
        (broken / wnid).symlink_to(imagenet / "train" / wnid)
    told = refused(*chosen, "--data", broken)
    wrong = ("encode", "--data", broken, "--vae", vae, "--image-size", 8, "--out", tmp_path / "run")
    assert "base, novel, all, not 'old'" in refused(*wrong, "--superclasses", "old")
    assert f"lacks 1 of 263 class folders: '{needed_folders('base')[0]}'" in told
    assert not (tmp_path / "run").exists()
