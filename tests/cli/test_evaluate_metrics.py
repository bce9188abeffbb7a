"""kindgene evaluate with extractors and references: the figures, their record, and what is refused."""

import json

import numpy as np
import pytest
import torch

from kindgene import Pool, load_digits
from kindgene.cli.models import load_any
from kindgene.data.glyphs import PER_CLASS
from kindgene.data.superclasses import superclasses
from kindgene.evaluation.denoising import validation_loss
from kindgene.evaluation.drawing import Sampling, drawn
from kindgene.evaluation.evaluate import evaluate_samples
from kindgene.evaluation.features import Extractor, Features
from kindgene.evaluation.learned import SETTINGS, network_extractor
from kindgene.evaluation.network import NetworkJudge, NetworkSettings
from kindgene.evaluation.reference import make_reference
from kindgene.files import sha256

QUICK = ("--steps", 2, "--per-class", 5, "--device", "cpu")
LOSS = ("--metrics", "loss", "--device", "cpu")
OF_IT = ["fd", "is", "precision", "recall", "recognised"]


@pytest.fixture(autouse=True)
def quick_network(monkeypatch, tmp_path_factory):
    """The digits' network, trained for a moment, in a cache of the tests' own."""
    monkeypatch.setitem(SETTINGS, "digits", NetworkSettings(images_seen=300))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))


class Eyes(Extractor):
    """Stands for Inception, whose weights come with no package."""

    name, preprocessing, dimension, sha256 = "inception", "none", 3, "e" * 64
    has_spatial = has_logits = True

    def __call__(self, pixels):
        found = pixels[:, :1].flatten(1).float() / 255
        return Features(found[:, :3] + found[:, 30:33], found[:, 27:29], found[:, 20:24])


@pytest.fixture
def eyes(monkeypatch):
    monkeypatch.setattr("kindgene.cli.extractors.load_inception", lambda path, device: Eyes())


def evaluate(kindgene, *arguments):
    return json.loads(kindgene("evaluate", *arguments).out)


def test_all_that_the_extractor_can_measure(kindgene, shared_pool, tmp_path):
    out = tmp_path / "result.json"
    result = evaluate(kindgene, shared_pool, "--extractor", "digits", "--classes", "1,0", *QUICK, "--out", out)
    assert json.loads(out.read_text()) == result

    model = Pool.from_pretrained(shared_pool).recombine(["1", "0"])
    asked, real = ["1"] * 5 + ["0"] * 5, load_digits().subset(["1", "0"])
    extractor = network_extractor("digits", 8)
    expected = evaluate_samples(
        drawn(model, asked, Sampling(steps=2)),
        asked,
        OF_IT,
        extractor=extractor,
        reference=make_reference(real, extractor, data="digits", features=len(real)),
        judge=NetworkJudge(extractor, tuple("0123456789")),
    )
    figures = {name: result[name] for name in OF_IT if name != "recognised"}
    assert figures == pytest.approx(expected.figures)
    assert (result["recognised"], result["per_class"]) == (
        expected.recognised.share,
        expected.recognised.per_class,
    )
    assert result["notes"] == expected.notes
    assert "singular" in result["notes"][0]
    assert result["metrics"] == OF_IT
    assert result["extractor"] == extractor.to_dict()
    assert result["reference"]["classes"] == ["1", "0"]
    assert result["reference"]["images"] == len(real)
    assert "images_sha256" in result["reference"]["fingerprint"]
    assert result["classifier"] == "convolutional network that learned digits, among these classes"
    assert (result["samples"], result["seed"], result["weights"], result["batch_size"]) == (10, 0, "ema", 256)


def test_a_reference_in_a_file(kindgene, refused, shared_pool, tmp_path):
    real, some = tmp_path / "real.safetensors", tmp_path / "some.safetensors"
    kindgene("reference", "--data", "digits", "--classes", "0,1,2", "--out", real)
    kindgene("reference", "--data", "digits", "--classes", "0", "--features", 0, "--out", some)
    made = evaluate(kindgene, shared_pool, "--extractor", "digits", *QUICK)
    read = evaluate(kindgene, shared_pool, "--data", "digits", "--reference", real, *QUICK)
    assert [read[name] for name in OF_IT] == pytest.approx([made[name] for name in OF_IT])
    assert read["reference"]["file_sha256"] == sha256(real)
    other = evaluate(kindgene, shared_pool, "--reference", some, "--metrics", "fd", *QUICK)
    assert other["fd"] != pytest.approx(read["fd"])
    assert "the reference is of 1 class, the samples are of 3" in other["notes"][-1]
    assert other["metrics"] == ["fd"]
    alone = evaluate(kindgene, shared_pool, "--reference", real, *QUICK)  # whose eyes it was made with is in the file
    assert alone["fd"] == pytest.approx(read["fd"])
    assert {"recognised", "data"}.isdisjoint(alone)  # without --data nobody knows what to look for
    assert "keeps no features" in refused("evaluate", shared_pool, "--reference", some, *QUICK)


def test_only_what_is_asked_for(kindgene, shared_pool):
    result = evaluate(kindgene, shared_pool, "--metrics", "is", "--extractor", "digits", *QUICK)
    assert {"fd", "recognised", "per_class", "reference", "classifier", "loss"}.isdisjoint(result)
    assert 1 <= result["is"] <= 10
    result = evaluate(kindgene, shared_pool, "--metrics", "recognised", "--extractor", "digits", *QUICK)
    assert result["classifier"].startswith("convolutional network")
    assert "fd" not in result


def test_the_loss_is_the_model_s_on_its_classes(kindgene, run, shared_pool, merged):
    """The same with all classes and with those of a part, whatever their places."""
    whole = evaluate(kindgene, run, *LOSS)
    assert (whole["loss_images"], whole["loss_data"]) == (len(load_digits().subset(["0", "1", "2"])), "digits")
    of_run = evaluate(kindgene, run, *LOSS, "--classes", "1")
    of_pool = evaluate(kindgene, shared_pool, *LOSS, "--classes", "1")
    of_merged = evaluate(kindgene, merged, *LOSS)
    assert of_run["loss"] == pytest.approx(of_pool["loss"], rel=1e-4)
    assert of_merged["loss"] == pytest.approx(of_pool["loss"], rel=1e-4)
    assert "recognised" not in of_run


def test_noise_and_timesteps_of_the_loss_are_the_seed_s(kindgene, merged):
    found = {seed: evaluate(kindgene, merged, *LOSS, "--seed", seed, "--batch-size", 100) for seed in (0, 7)}
    model, images = load_any(merged, None).model, load_digits().subset(["1"])
    for seed, result in found.items():
        assert result["loss"] == validation_loss(model, images, draws=8, batch_size=100, seed=seed)
        assert (result["seed"], result["loss_timesteps"], result["batch_size"]) == (seed, 8, 100)
    assert found[0]["loss"] != found[7]["loss"]
    assert found[0]["loss_fingerprint"] == found[7]["loss_fingerprint"]
    assert found[0]["loss_fingerprint"]["images_sha256"] == images.fingerprint()["images_sha256"]


def test_of_the_loss_alone_nothing_of_sampling_is_told(kindgene, merged):
    facts = evaluate(kindgene, merged, *LOSS)
    of_sampling = {"samples", "samples_per_class", "scheduler", "steps", "guidance", "clip", "vae", "extractor"}
    assert of_sampling.isdisjoint(facts)
    assert {"weights", "seed", "batch_size", "device", "data", "parameters", "versions"} < facts.keys()


@pytest.mark.parametrize(
    "option",
    [
        *(("--count", 7), ("--per-class", 2), ("--guidance", 1.5), ("--steps", 2), ("--scheduler", "ddim")),
        *(("--clip",), ("--no-clip",), ("--vae", "x")),
    ],
)
def test_options_of_sampling_are_refused_where_nothing_is_sampled(refused, merged, tmp_path, option):
    """Those that are at their default, too."""
    name = option[0].replace("no-", "")
    told = refused("evaluate", merged, *LOSS, *option, "--out", tmp_path / "x.json")
    assert f"{name} is for samples, and loss draws none" in told
    assert not list(tmp_path.iterdir())


def test_a_number_of_samples_in_all(kindgene, refused, shared_pool):
    settings = ("--count", 7, "--steps", 2, "--metrics", "fd,recognised")
    result = evaluate(kindgene, shared_pool, *settings)
    assert (result["samples"], result["samples_per_class"]) == (7, None)
    assert set(result["per_class"]) == {"0", "1", "2"}
    assert "not both" in refused("evaluate", shared_pool, "--count", 7, "--per-class", 2)


def test_batches_change_rounding_alone(kindgene, shared_pool):
    found = [
        evaluate(kindgene, shared_pool, "--extractor", "digits", "--batch-size", size, *QUICK)["fd"] for size in (2, 99)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_inception_measures_what_adm_does(kindgene, refused, eyes, shared_pool, tmp_path):
    result = evaluate(kindgene, shared_pool, "--inception-weights", "given.pth", *QUICK)
    assert result["metrics"] == ["fid", "sfid", "is", "precision", "recall", "recognised"]
    assert all(result[name] >= 0 for name in result["metrics"])
    assert result["classifier"].startswith("scikit-learn")
    archive = tmp_path / "adm.npz"
    np.savez(archive, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(2))
    assert "needs --inception-weights" in refused("evaluate", shared_pool, "--reference", archive)
    wrong = refused("evaluate", shared_pool, "--inception-weights", "x.pth", "--reference", archive, "--metrics", "fid")
    assert "ADM's have 2048 and 2023" in wrong


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.pkl"])
@pytest.mark.parametrize("content", [b"junk\n", b"", bytes(range(256))])
def test_what_is_no_weight_file_is_refused(refused, shared_pool, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    settings = ("--metrics", "is", "--inception-weights", tmp_path / name)
    assert name in refused("evaluate", shared_pool, *settings)


def test_dinov2_in_a_folder(kindgene, shared_pool, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=56, mlp_ratio=1
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    settings = ("--dino", tmp_path / "dino", "--metrics", "fd", "--reference", "digits", "--classes", "1")
    real = tmp_path / "real.safetensors"
    images = ("--data", "digits", "--classes", "1", "--dino", tmp_path / "dino")
    kindgene("reference", *images, "--out", real)
    made = evaluate(kindgene, shared_pool, *settings, *QUICK)
    read = evaluate(kindgene, shared_pool, *settings[:4], "--reference", real, "--classes", "1", *QUICK)
    assert made["extractor"]["name"] == "dinov2"
    assert read["fd"] == pytest.approx(made["fd"])


def test_glyphs_are_judged_by_their_network(kindgene, monkeypatch, tmp_path):
    monkeypatch.setitem(SETTINGS, "glyphs", NetworkSettings(images_seen=100, per_class=1))
    monkeypatch.setattr("kindgene.evaluation.learned.HELD_OUT_PER_CLASS", 1)
    monkeypatch.setitem(PER_CLASS, "train", 3)
    monkeypatch.setitem(PER_CLASS, "validation", 2)
    names = [one.name for one in superclasses() if one.group == "base"][:2]
    look = ("--data", "glyphs", "--classes", ",".join(names), "--preset", "tiny/2", "--steps", 2, "--batch-size", 4)
    kindgene("pretrain", *look, "--out", tmp_path / "run")
    result = evaluate(kindgene, tmp_path / "run", "--data", "glyphs", "--metrics", "recognised,loss", *QUICK)
    assert result["classifier"] == "convolutional network that learned glyphs, among these classes"
    assert len(result["classifier_classes"]) == 150
    assert result["loss_data"] == "glyphs, validation split"
    assert result["loss_images"] == 4


def test_a_dry_run_trains_no_network(kindgene, monkeypatch, shared_pool):
    monkeypatch.setattr("kindgene.evaluation.learned.network_extractor", None)
    facts = evaluate(kindgene, shared_pool, "--extractor", "digits", "--dry-run")
    assert facts["metrics"] == OF_IT
    assert "fd" not in facts


def test_what_is_refused_before_any_work(refused, monkeypatch, images, fish_pool, shared_pool, tmp_path):
    monkeypatch.setattr("kindgene.diffusion.sampler.DiffusionPath.scheduler", None)
    for arguments, told in (
        (("--metrics", "fod"), "unknown metric 'fod'"),
        (("--metrics", "fid", "--extractor", "digits"), "fid is of Inception alone"),
        (("--metrics", "sfid"), "no spatial features"),
        (("--extractor", "vgg"), "no extractor 'vgg'; there are digits, glyphs, inception, dinov2"),
        (("--extractor", "inception"), "--extractor inception needs --inception-weights"),
        (("--extractor", "dinov2"), "needs --dino"),
        (("--extractor", "digits", "--dino", "x"), "--dino is for --extractor dinov2, and digits was asked for"),
        (("--dino", "x", "--inception-weights", "y"), "was asked for"),
        (("--dino", tmp_path / "none"), "is not a folder, nor a Hub id"),
        (("--inception-weights", tmp_path / "none.pth"), "pt_inception-2015-12-05"),
        (("--metrics", "is", "--reference", "digits"), "--reference is for fd, fid, sfid"),
        (("--metrics", "loss", "--extractor", "digits"), "loss looks through no extractor"),
        (("--metrics", "recognised", "--extractor", "glyphs"), "recognised looks through no extractor"),
        (("--metrics", "is", "--extractor", "digits", "--data", "digits"), "is does not look at --data; leave it out"),
        (("--reference", tmp_path / "none.safetensors"), "there is no such file"),
        (("--reference", "glyphs"), "takes images of 16 or 32 pixels a side, not 8"),
        (("--reference", images), "give an --extractor to see"),
        (("--extractor", "glyphs"), "takes images of 16 or 32 pixels a side, not 8"),
    ):
        assert told in refused("evaluate", shared_pool, *arguments), arguments
    own = ("--data", images, "--metrics", "fd")
    assert "give an --extractor to see" in refused("evaluate", fish_pool, *own)


def test_images_of_ones_own_through_the_digits_eyes(kindgene, images, fish_pool):
    """Whatever fits its size: a network's features are features."""
    settings = ("--data", images, "--extractor", "digits", "--metrics", "fd")
    result = evaluate(kindgene, fish_pool, *settings, *QUICK)
    assert result["fd"] > 0
    assert result["reference"]["images"] == 8
    assert torch.tensor(result["fd"]).isfinite()
