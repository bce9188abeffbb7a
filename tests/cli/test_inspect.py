"""kindgene inspect: what it says of a pool is what the pool's tensors say."""

import json

import pytest
from PIL import Image

from kindgene import Pool


def test_what_it_says(kindgene, shared_pool):
    facts = json.loads(kindgene("inspect", shared_pool).out)
    pool = Pool.from_pretrained(shared_pool)
    assert facts["backbone"] == "DiT"
    assert facts["weights"] == "ema"
    assert facts["learngene_id"] == pool.config.learngene_id
    assert facts["generation"] == 1
    assert facts["provenance"]["step"] == 3
    assert list(facts["classes"]) == ["0", "1", "2"]
    assert {target: tuple(ranks) for target, ranks in facts["ranks"].items()} == pool.config.ranks


def test_sizes_are_the_models(kindgene, shared_pool):
    """Learngene and one tailor are, together, what a model of one class holds."""
    facts = json.loads(kindgene("inspect", shared_pool).out)
    model = Pool.from_pretrained(shared_pool, classes=["1"]).to_model()
    held = sum(value.numel() for value in model.parameters())
    assert facts["learngene_parameters"] + facts["classes"]["1"]["parameters"] == held


def test_energy_is_that_of_the_matrices(kindgene, shared_pool):
    facts = json.loads(kindgene("inspect", shared_pool).out)
    pool = Pool.from_pretrained(shared_pool)
    shared = sum(float(value.double().norm()) ** 2 for key, value in pool.learngene.items() if key.endswith(".s"))
    own = sum(float(v.double().norm()) ** 2 for k, v in pool.tailors[2].components.items() if k.endswith(".s"))
    assert facts["classes"]["2"]["energy_share"] == pytest.approx(own / (shared + own))
    assert 0 < facts["classes"]["2"]["energy_share"] < 1


def test_the_plot(kindgene, shared_pool, tmp_path):
    kindgene("inspect", shared_pool, "--plot", tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 100


def test_names_are_written_as_they_are(kindgene, fish_pool):
    facts = json.loads(kindgene("inspect", fish_pool).out)
    assert list(facts["classes"]) == ["tench, Tinca tinca", "cat"]


def test_what_is_refused(refused, run, pool, tmp_path):
    assert "is not a folder" in refused("inspect", tmp_path / "nowhere")
    assert "is not a pool" in refused("inspect", run)
    assert "must end in .png" in refused("inspect", pool, "--plot", tmp_path / "s.svg")
    tailor = next(pool.rglob("0-*.safetensors"))
    tailor.write_bytes(tailor.read_bytes()[:-1])
    assert tailor.name in refused("inspect", pool)


def test_a_full_disk_leaves_the_old_plot(kindgene, full_disk, shared_pool, tmp_path):
    (tmp_path / "s.png").write_text("old")
    full_disk()
    result = kindgene("inspect", shared_pool, "--plot", tmp_path / "s.png", code=2)
    assert result.err.startswith("kindgene: ")
    assert "No space left on device" in result.err
    assert result.err.count("\n") == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
