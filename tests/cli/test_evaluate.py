"""kindgene evaluate: the figure, and everything that is needed to get it again."""

import json
from importlib.metadata import version

import pytest
import torch

from kindgene import Pool, load_digits, sample
from kindgene.evaluation.classifier import recognised, train_classifier
from kindgene.evaluation.cost import measure_cost

QUICK = ("--steps", 2, "--per-class", 4)


def test_the_result_and_its_record(kindgene, shared_pool, tmp_path):
    out = tmp_path / "result.json"
    settings = ("--classes", "1,0", "--guidance", 1.5, "--scheduler", "ddpm", "--seed", 5, "--device", "cpu")
    told = kindgene("evaluate", shared_pool, *settings, *QUICK, "--out", out).out
    result = json.loads(told)
    assert json.loads(out.read_text()) == result

    model = Pool.from_pretrained(shared_pool).recombine(["1", "0"])
    asked = ["1"] * 4 + ["0"] * 4
    generator = torch.Generator().manual_seed(5)
    images = sample(model, asked, guidance=1.5, steps=2, scheduler="ddpm", clip=1.0, generator=generator)
    classifier = train_classifier(*load_digits().split(0.2, seed=0), seed=0)
    found = recognised(classifier, images, asked)
    expected = {
        "recognised": found.share,
        "per_class": found.per_class,
        "classifier": "scikit-learn SVC (RBF) on pixels",
        "classifier_accuracy": classifier.accuracy,
        "classifier_classes": list("0123456789"),
        "classifier_trained_on": classifier.train_count,
        "classifier_held_out": classifier.held_out_count,
        "model": str(shared_pool),
        "weights": "ema",
        "classes": ["1", "0"],
        "metrics": ["recognised"],
        "samples_per_class": 4,
        "samples": 8,
        "scheduler": "ddpm",
        "steps": 2,
        "guidance": 1.5,
        "clip": 1.0,
        "seed": 5,
        "batch_size": 256,
        "device": "cpu",
        "data": "digits",
        **measure_cost(model).to_dict(),
    }
    versions = result.pop("versions")
    assert result == expected
    assert versions["kindgene"] == version("kindgene")
    assert {"python", "torch", "diffusers", "scikit-learn"} < versions.keys()


def test_guidance_may_lead_away_from_a_class(kindgene, shared_pool):
    away = ("--guidance", 2, "--negative", "1")
    result = json.loads(kindgene("evaluate", shared_pool, *away, *QUICK).out)
    assert (result["negative"], result["classes"], result["samples"]) == ("1", ["0", "2"], 8)
    plain = json.loads(kindgene("evaluate", shared_pool, "--classes", "0,2", "--guidance", 2, *QUICK).out)
    assert "negative" not in plain


def test_every_kind_of_model(kindgene, run, merged, shared_pool):
    for path, count in ((run, 12), (shared_pool, 12), (merged, 4)):
        result = json.loads(kindgene("evaluate", path, *QUICK, "--no-clip").out)
        assert (result["samples"], result["weights"], result["clip"]) == (count, "ema", None)
        assert set(result["per_class"]) == set(result["classes"])


def test_clipping_is_the_samplers(kindgene, monkeypatch, merged):
    """As recorded, so done."""
    seen = []

    def spy(model, classes, **settings):
        seen.append(settings["clip"])
        return sample(model, classes, **settings)

    monkeypatch.setattr("kindgene.diffusion.sampler.sample", spy)
    recorded = [json.loads(kindgene("evaluate", merged, *QUICK, clip).out)["clip"] for clip in ("--clip", "--no-clip")]
    assert seen == recorded == [1.0, None]


def test_weights_are_those_of_the_model(kindgene, run, tmp_path):
    kindgene("decompose", run, "--out", tmp_path / "pool", "--weights", "raw")
    kindgene("recombine", tmp_path / "pool", "--classes", "1", "--form", "merged", "--out", tmp_path / "one")
    for path in ("pool", "one"):
        assert json.loads(kindgene("evaluate", tmp_path / path, "--dry-run").out)["weights"] == "raw"
    (tmp_path / "one" / "provenance.json").unlink()
    assert json.loads(kindgene("evaluate", tmp_path / "one", "--dry-run").out)["weights"] is None


def test_images_of_ones_own_and_a_name_with_a_comma(kindgene, images, fish_pool):
    names = ("--data", images, "--classes", r"tench\, Tinca tinca")
    result = json.loads(kindgene("evaluate", fish_pool, *names, *QUICK).out)
    assert list(result["per_class"]) == ["tench, Tinca tinca"]
    assert result["classifier_accuracy"] == 1.0


def test_a_dry_run_tells_and_leaves_nothing(kindgene, monkeypatch, shared_pool, tmp_path):
    monkeypatch.setattr("kindgene.evaluation.classifier.train_classifier", None)  # a real run would fail
    facts = json.loads(kindgene("evaluate", shared_pool, "--dry-run", "--out", tmp_path / "x.json").out)
    assert (facts["classes"], facts["samples"], facts["scheduler"]) == (["0", "1", "2"], 150, "ddim")
    assert facts["parameters"] > 0
    assert facts["macs"] > 0
    assert "recognised" not in facts
    assert not list(tmp_path.iterdir())


def test_what_is_refused_before_any_work(refused, monkeypatch, images, fish_pool, merged, shared_pool, tmp_path):
    monkeypatch.setattr("kindgene.evaluation.classifier.train_classifier", None)
    monkeypatch.setattr("kindgene.diffusion.sampler.DiffusionPath.scheduler", None)
    assert "cat" in refused("evaluate", fish_pool)  # digits have no cats
    assert "unknown class '0'" in refused("evaluate", shared_pool, "--data", images)
    assert "did you mean '1'" in refused("evaluate", merged, "--classes", "11")
    assert "is neither a folder nor" in refused("evaluate", shared_pool, "--data", tmp_path / "nowhere")
    assert "must end in .json" in refused("evaluate", shared_pool, "--out", tmp_path / "x.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("choice", "told"), [(("--scheduler", "euler"), "euler"), (("--guidance", "nan"), "guidance")])
def test_what_cannot_be_leaves_nothing(refused, shared_pool, tmp_path, choice, told):
    assert told in refused("evaluate", shared_pool, *QUICK, *choice, "--out", tmp_path / "x.json")
    assert not list(tmp_path.iterdir())
