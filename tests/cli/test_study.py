"""kindgene study: tables, pictures and JSON of each study at tiny scale, and what is refused."""

import json
from dataclasses import replace

import pytest


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Where rendered glyphs are kept meanwhile."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_elastic_study_over_two_seeds(kindgene, tmp_path, cache):
    out = tmp_path / "studies"
    told = kindgene("study", "elastic", "--scale", "tiny", "--seeds", 2, "--out", out)
    folder = out / "elastic" / "tiny"
    summary = json.loads((folder / "elastic.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert [run["seed"] for run in summary["runs"]] == [0, 1]
    for name, points in summary["curves"].items():
        for place, point in enumerate(points):
            losses = [run["curves"][name][place]["loss"] for run in summary["runs"]]
            assert point["least"] == min(losses)
            assert point["most"] == max(losses)
            assert point["loss"] == pytest.approx(sum(losses) / 2)
    table = (folder / "elastic.md").read_text()
    assert table in told.out
    assert table.count("\n") == 2 + sum(len(points) for points in summary["curves"].values())
    assert (folder / "elastic.png").read_bytes().startswith(b"\x89PNG")
    again = kindgene("study", "elastic", "--scale", "tiny", "--seeds", 2, "--out", out)
    assert "step" not in again.err
    assert json.loads((folder / "elastic.json").read_text())["curves"] == summary["curves"]


def test_a_dry_run_leaves_nothing(kindgene, tmp_path):
    told = json.loads(kindgene("study", "elastic", "--dry-run", "--out", tmp_path / "x").out)
    assert (told["scale"], told["seeds"], told["steps"]) == ("mini", 1, 1000)
    assert not (tmp_path / "x").exists()


def test_what_there_is_not_is_refused(refused, tmp_path):
    told = refused("study", "plastic", "--out", tmp_path / "x")
    assert "no study 'plastic'; there is pretrain, novel, shift, agnostic, elastic" in told
    assert "no scale 'giant'" in refused("study", "elastic", "--scale", "giant", "--out", tmp_path / "x")
    assert "at least 1" in refused("study", "elastic", "--seeds", "0")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("study", ["pretrain", "novel", "shift", "agnostic", "elastic"])
def test_every_study_tells_what_it_would_do(kindgene, refused, tmp_path, study):
    told = json.loads(kindgene("study", study, "--scale", "tiny", "--seeds", 3, "--out", tmp_path, "--dry-run").out)
    assert (told["study"], told["scale"], told["seeds"]) == (study, "tiny", 3)
    assert told["steps"] >= 1
    assert "no scale 'vast'" in refused("study", study, "--scale", "vast", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_study_of_transfers_by_its_command(kindgene, tmp_path, cache, monkeypatch):
    from kindgene.studies import transfers

    few = replace(transfers.SCALES["tiny"], strategies=("kind", "full_finetune", "scratch"))
    monkeypatch.setattr(transfers, "SCALES", {"tiny": few})
    told = kindgene("study", "shift", "--scale", "tiny", "--out", tmp_path).out
    assert "stars: KIND" in told
    assert (tmp_path / "shift" / "tiny" / "shift.html").is_file()
    assert (tmp_path / "transfers").is_dir()  # what the novel study would go on from
