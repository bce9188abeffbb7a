"""kindgene inspect: what it says of pools, models, runs and checkpoints is what their tensors say."""

import json
import time

import pytest
import safetensors.torch
import torch
from PIL import Image

from kindgene import Pool
from kindgene.core.components import compose
from kindgene.evaluation.matrices import pool_matrices
from kindgene.files import read_json, write_json


def facts_of(kindgene, *arguments):
    return json.loads(kindgene("inspect", *arguments, "--json").out)


def test_a_pool(kindgene, shared_pool):
    facts, pool = facts_of(kindgene, shared_pool), Pool.from_pretrained(shared_pool)
    assert (facts["kind"], facts["backbone"], facts["canonical"]) == ("pool", "DiT", True)
    assert facts["record"]["learngene_id"] == pool.config.learngene_id
    assert facts["record"]["provenance"]["step"] == 3
    assert list(facts["classes"]) == ["0", "1", "2"]
    assert {target: tuple(ranks) for target, ranks in facts["ranks"].items()} == pool.config.ranks
    held = sum(value.numel() for value in Pool.from_pretrained(shared_pool, classes=["1"]).to_model().parameters())
    assert facts["learngene_parameters"] + facts["classes"]["1"]["parameters"] == held
    assert facts["parameters"] == sum(value.numel() for value in pool.to_model().parameters())
    assert facts["bytes"] == sum(path.stat().st_size for path in shared_pool.rglob("*.safetensors"))


def test_energies_and_singular_values_are_those_of_the_matrices(kindgene, shared_pool):
    (structure,) = facts_of(kindgene, shared_pool)["structures"]
    pool = Pool.from_pretrained(shared_pool)
    shared = sum(float(value.double().square().sum()) for key, value in pool.learngene.items() if key.endswith(".s"))
    own = sum(float(v.double().square().sum()) for k, v in pool.tailors[2].components.items() if k.endswith(".s"))
    assert structure["tailors"][2]["classes"] == ["2"]
    assert structure["tailors"][2]["energy_share"] == pytest.approx(own / (shared + own))
    layer = next(layer for layer in structure["layers"] if layer["target"] == "blocks.1.mlp.fc1")
    assert layer["shared"]["singular_values"] == pytest.approx(pool.learngene["blocks.1.mlp.fc1.s"].tolist(), rel=1e-5)
    assert layer["shared"]["drift_u"] < 1e-5
    assert 0 <= layer["pairs"]["overlap_u"] <= 1
    assert len(structure["overlap_v"]) == 3


@pytest.mark.parametrize("arguments", [(), ("--layers",), ("--sizes",), ("--classes", "2,0")])
def test_it_can_be_read(kindgene, shared_pool, arguments):
    told = kindgene("inspect", shared_pool, *arguments).out
    assert "learngene" in told
    assert max(map(len, told.splitlines())) <= 80


def test_a_run_and_its_checkpoint_before_canonical_form(kindgene, run):
    facts = facts_of(kindgene, run)
    assert (facts["kind"], facts["canonical"], facts["record"]["step"]) == ("run", False, 3)
    assert [structure["weights"] for structure in facts["structures"]] == ["ema", "raw"]
    drifts = [layer["shared"]["drift_u"] for layer in facts["structures"][1]["layers"]]
    assert max(drifts) > 1e-3  # random components are not orthogonal
    checkpoint = next((run / "checkpoints").glob("step-*3"))
    again = facts_of(kindgene, checkpoint)
    assert (again["kind"], again["structures"]) == ("checkpoint", facts["structures"])
    kindgene("inspect", run)


@pytest.mark.parametrize("form", ["merged", "dense"])
def test_a_saved_model(kindgene, shared_pool, tmp_path, form):
    kindgene("recombine", shared_pool, "--classes", "1", "--form", form, "--out", tmp_path / "one")
    facts = facts_of(kindgene, tmp_path / "one")
    assert (facts["kind"], list(facts["classes"])) == ("model", ["1"])
    (structure,) = facts["structures"]
    pool = Pool.from_pretrained(shared_pool, classes=["1"])
    for layer, matrix in zip(structure["layers"], pool_matrices(pool), strict=True):
        assert (layer["target"], layer["part"]) == (matrix.target, matrix.part)
        weight = compose(matrix.shared) + compose(matrix.tailors)[0]
        found, expected = layer["shared"]["singular_values"], torch.linalg.svdvals(weight.double()).tolist()
        assert found == pytest.approx(expected[: len(found)], rel=1e-4, abs=1e-6)
    assert {tuple(ranks) for ranks in facts["ranks"].values()} == (
        {(None, None, None), (None,)} if form == "dense" else {tuple(ranks) for ranks in facts["ranks"].values()}
    )
    kindgene("inspect", tmp_path / "one")


def test_pictures(kindgene, shared_pool, run, tmp_path):
    kindgene("inspect", shared_pool, "--plot", tmp_path / "all.png")
    kindgene("inspect", run, "--plot", tmp_path / "pictures")
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert any("drift" in name for name in drawn)
    for path in (tmp_path / "all.png", *(tmp_path / "pictures").iterdir()):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100


def test_names_are_written_as_they_are(kindgene, fish_pool):
    assert list(facts_of(kindgene, fish_pool)["classes"]) == ["tench, Tinca tinca", "cat"]
    assert "tench, Tinca tinca" in kindgene("inspect", fish_pool).out


def test_tailors_of_several_ranks(kindgene, pool, tmp_path):
    new = ("--classes", "6", "--steps", 2, "--batch-size", 8, "--tailor-rank", 2, "--out", tmp_path / "new", "--add")
    kindgene("transfer", pool, *new)
    facts = facts_of(kindgene, pool)
    assert [facts["classes"][name]["tailor_ranks"] for name in "0126"] == [6, 6, 6, 2]
    assert [tailor["rank"] for tailor in facts["structures"][0]["layers"][0]["tailors"]] == [6, 6, 6, 2]
    kindgene("inspect", pool, "--plot", tmp_path / "s.png")


def test_listing_thousands_of_classes_reads_no_tensor(kindgene, pool, monkeypatch):
    """The files of the made-up classes hold nothing that could be read."""
    config = read_json(pool / "config.json")
    for number in range(2000):
        digest = f"{number:064x}"[::-1]
        file = f"tailors/{digest[:2]}/made-up-{digest[:16]}.safetensors"
        config["classes"][f"made up {number}"] = {"file": file, "sha256": digest, "tailor_ranks": 6, "row": 0}
        (pool / file).parent.mkdir(exist_ok=True)
        (pool / file).write_bytes(b"nothing")
    write_json(pool / "config.json", config)

    def refuse(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(safetensors.torch, "load", refuse)
    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    began = time.perf_counter()
    facts = facts_of(kindgene, pool, "--sizes")
    assert time.perf_counter() - began < 5  # 0.1 s were measured
    assert (len(facts["classes"]), facts["structures"]) == (2003, [])


def test_what_is_refused(refused, merged, run, pool, tmp_path):
    assert "is not a folder" in refused("inspect", tmp_path / "nowhere")
    assert "holds neither a pool" in refused("inspect", tmp_path)
    assert "must end in .png" in refused("inspect", pool, "--plot", tmp_path / "s.svg")
    assert "--layers is about the printed tables" in refused("inspect", pool, "--layers", "--json")
    assert "nothing to --plot" in refused("inspect", pool, "--sizes", "--plot", tmp_path / "s.png")
    assert "no class '9'" in refused("inspect", pool, "--classes", "9")
    assert "no class '9'" in refused("inspect", run, "--classes", "9")
    assert "no tailors" in refused("inspect", merged, "--classes", "1")
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
