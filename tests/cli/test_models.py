"""Where verbs get data and models from: what is found, what is refused, and that names are helped with."""

import json
import shutil

import pytest
import torch

from kindgene import DiT, KindConfig, TrainConfig, load_digits, make_decomposable, train
from kindgene.cli.models import load_any, load_data
from kindgene.data.named import NAMES


def test_data_is_embedded_or_a_folder(images):
    digits = load_data("digits", ["3", "1"], None, None)
    assert (digits.class_names, tuple(digits.images.shape[1:])) == (("3", "1"), (1, 8, 8))
    larger = load_data("shift:digits", ["3", "1"], None, 1)
    assert (larger.class_names, tuple(larger.images.shape[1:])) == (("3", "1"), (1, 16, 16))
    folder = load_data(str(images), None, 4, None)
    assert folder.class_names == ("cat", "tench, Tinca tinca", "zebra")
    assert tuple(folder.images.shape) == (12, 3, 4, 4)


def test_every_embedded_data_set_is_named_in_the_help(kindgene):
    text = "".join(kindgene("pretrain", "--help").out.replace("│", " ").split())
    assert all(f"{name}," in text for name in NAMES)


def test_data_that_cannot_be(images):
    for arguments, told in (
        (("digits", None, 16, None), "digits have 8 pixels a side, not 16"),
        (("digits", None, None, 3), "digits is grey, but images of 3 channels are needed"),
        (("digitz", None, 8, None), "digitz is neither a folder nor one of digits, glyphs"),
        (("digits", ["eleven"], None, None), "no class 'eleven' in digits; nearest"),
        ((str(images), None, None, None), "give the --image-size"),
        ((str(images), ["zebre"], 8, 1), "no class 'zebre' in .*; nearest: 'zebra'"),
        ((str(images), ["qqq"], 8, 1), "nearest: 'cat', 'tench, Tinca tinca', 'zebra'"),
    ):
        with pytest.raises(ValueError, match=told):
            load_data(*arguments)


def test_a_pool_a_merged_model_and_a_run_are_told_apart(run, shared_pool, merged):
    for path, names, null in ((run, ("0", "1", "2"), 3), (shared_pool, ("0", "1", "2"), 3), (merged, ("1",), None)):
        loaded = load_any(path, None)
        assert (loaded.model.class_names, loaded.model.null_class, loaded.weights) == (names, null, "ema")
    assert load_any(shared_pool, ["2", "0"]).model.class_names == ("2", "0")


def test_run_and_pool_are_one_model(run, shared_pool):
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([3, 400, 900]), torch.tensor([0, 2, 3])
    a, b = load_any(run, None).model(x, t, y), load_any(shared_pool, None).model(x, t, y)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_run_made_in_python_without_ema_and_names(tmp_path):
    data = load_digits().subset(["5", "6"])
    for kind in (False, True):
        model = DiT.from_preset("tiny/2", num_classes=2)
        if kind:
            model = make_decomposable(model, KindConfig(num_classes=2, learngene_rank=4, tailor_rank=2))
        train(model, data, TrainConfig(steps=1, batch_size=4, ema_decay=0.0), tmp_path / str(kind))
        loaded = load_any(tmp_path / str(kind), ["6"])
        assert (loaded.weights, loaded.model.class_names) == ("raw", ("5", "6"))
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], value)


def test_unknown_classes_get_the_nearest_named(refused, fish_pool, tmp_path):
    out = tmp_path / "x.png"
    for path in (fish_pool, fish_pool.parent / "run"):
        assert "'cat'" in refused("sample", path, "--classes", "catt", "--out", out)
        assert "tench, Tinca tinca" in refused("evaluate", path, "--classes", "tench Tinca tinca", "--dry-run")


def test_places_without_a_model(refused, merged, run, tmp_path):
    out = ("--out", tmp_path / "x.png")
    assert "is not a folder" in refused("sample", tmp_path / "nowhere", *out)
    assert "neither a pool, nor a merged model, nor a run" in refused("sample", tmp_path, *out)
    for text in ("[]", "{}", "null", "{", '{"_class_name": "Elephant"}', '{"format": "kindgene-pool"}'):
        (tmp_path / "config.json").write_text(text)
        assert "config.json" in refused("sample", tmp_path, *out)

    broken = shutil.copytree(merged, tmp_path / "merged")
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("sample", broken, *out)

    broken = shutil.copytree(merged, tmp_path / "unrecorded")
    for text in ("[]", "{}", '{"weights": "ema"}', '{"weights": "ema", "plan": {"format": "kindgene-plan"}}'):
        (broken / "provenance.json").write_text(text)
        assert "provenance.json" in refused("sample", broken, *out)

    broken = shutil.copytree(run, tmp_path / "run")
    for text in ("[]", "{}", '{"config": {}, "data": {}}'):
        (broken / "run.json").write_text(text)
        assert "run.json does not describe a run" in refused("sample", broken, *out)
    shutil.rmtree(broken / "checkpoints")
    shutil.copy(run / "run.json", broken / "run.json")
    assert "holds no checkpoint" in refused("sample", broken, *out)
    assert not (tmp_path / "x.png").exists()


def test_a_model_whose_classes_have_no_names(refused, tmp_path):
    DiT.from_preset("tiny/2", num_classes=2).save_pretrained(tmp_path / "plain")
    assert "have no names" in refused("sample", tmp_path / "plain", "--out", tmp_path / "x.png")


def test_pools_of_other_backbones(refused, pool, tmp_path):
    config = json.loads((pool / "config.json").read_text())
    (pool / "config.json").write_text(json.dumps({**config, "backbone": "ViTModel"}))
    told = "pool of ViTModel; the command line works with DiT alone"
    assert told in refused("sample", pool, "--out", tmp_path / "x.png")
    assert told in refused("transfer", pool, "--classes", "6", "--out", tmp_path / "x")
