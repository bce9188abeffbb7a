"""kindgene study: tables, pictures and JSON of each study at tiny scale, and what is refused."""

import json
import multiprocessing
import time
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
            assert point["loss"] == {"mean": pytest.approx(sum(losses) / 2), "least": min(losses), "most": max(losses)}
    assert "The plain pool at " in told.out
    assert (folder / "elastic.png").read_bytes().startswith(b"\x89PNG")
    again = kindgene("study", "elastic", "--scale", "tiny", "--seeds", 2, "--out", out)
    assert "step" not in again.err
    assert json.loads((folder / "elastic.json").read_text())["curves"] == summary["curves"]


def test_the_agnostic_study_cell_by_cell(kindgene, tmp_path, cache):
    from kindgene.studies.agnostic import MODELS

    command = ("study", "agnostic", "--scale", "tiny", "--out", tmp_path)
    assert "1 of 4 cells are finished" in kindgene(*command, "--cells", "label-rows-only").out
    listed = kindgene(*command, "--list").out.splitlines()
    assert [line.split()[0] for line in listed] == ["-", "-", "-", "finished"]
    told = kindgene(*command).out
    assert told.count("no components, null row") == len(MODELS)
    assert (tmp_path / "agnostic" / "tiny" / "agnostic.html").is_file()


def test_another_process_takes_part(kindgene, tmp_path, cache, monkeypatch):
    """It computes everything where this one only waits."""
    from kindgene.studies import cells

    def wait(seeds, *_):
        until = time.monotonic() + 120
        while (found := cells.finished(seeds))[0] < found[1]:
            assert time.monotonic() < until
            time.sleep(0.1)

    monkeypatch.setattr(cells, "run_cells", wait)
    told = kindgene("study", "agnostic", "--scale", "tiny", "--out", tmp_path, "--jobs", 2)
    assert told.out.endswith(f"report: {tmp_path / 'agnostic' / 'tiny' / 'agnostic.html'}\n")
    assert told.err == ""
    assert multiprocessing.active_children() == []


def test_what_stops_this_process_stops_those_that_take_part(refused, tmp_path, cache, monkeypatch):
    from kindgene.studies import cells

    def fail(*_):
        assert len(multiprocessing.active_children()) == 2
        raise ValueError("no more")

    monkeypatch.setattr(cells, "run_cells", fail)
    command = ("study", "agnostic", "--scale", "tiny", "--out", tmp_path, "--jobs", 3)
    assert refused(*command) == "kindgene: no more\n"
    assert multiprocessing.active_children() == []
    assert "at least 1" in refused(*command[:-1], 0)


def test_a_dry_run_leaves_nothing(kindgene, tmp_path):
    told = json.loads(kindgene("study", "elastic", "--dry-run", "--out", tmp_path / "x").out)
    assert (told["scale"], told["seeds"], told["steps"]) == ("mini", 1, 1000)
    assert not (tmp_path / "x").exists()


def test_what_there_is_not_is_refused(refused, tmp_path):
    told = refused("study", "plastic", "--out", tmp_path / "x")
    assert "no study 'plastic'; there is pretrain, deploy, novel, shift, agnostic, ablate, elastic" in told
    assert "no scale 'giant'" in refused("study", "elastic", "--scale", "giant", "--out", tmp_path / "x")
    assert "at least 1" in refused("study", "elastic", "--seeds", "0")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("study", ["pretrain", "deploy", "novel", "shift", "agnostic", "ablate", "elastic"])
def test_every_study_tells_what_it_would_do(kindgene, refused, tmp_path, study):
    told = json.loads(kindgene("study", study, "--scale", "tiny", "--seeds", 3, "--out", tmp_path, "--dry-run").out)
    assert (told["study"], told["scale"], told["seeds"]) == (study, "tiny", 3)
    assert told["cells"] >= 1
    assert "no scale 'vast'" in refused("study", study, "--scale", "vast", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def few(monkeypatch):
    """The shift study with three rows of one far set."""
    from kindgene.studies import transfers

    rows = ("kind", "full_finetune", "scratch")
    monkeypatch.setattr(transfers, "SCALES", {"tiny": replace(transfers.SCALES["tiny"], shift_rows=rows)})


def test_a_study_in_several_commands(kindgene, refused, tmp_path, cache, few):
    look = ("study", "shift", "--scale", "tiny", "--out", tmp_path)
    assert kindgene(*look, "--list").out.splitlines()[0] == "-        seed 0 stars/real"
    told = kindgene(*look, "--cells", "stars/kind/*").out
    assert told == "2 of 8 cells are finished; the report needs all of them: give the command again\n"
    assert "finished seed 0 stars/kind/final" in kindgene(*look, "--list").out
    assert "2 of 8 cells are finished" in kindgene(*look, "--minutes", "1e-9").out
    found = kindgene(*look)
    told = found.out
    assert "stars: test loss of KIND" in told
    assert "no cell left" in found.err
    page = tmp_path / "shift" / "tiny" / "shift.html"
    assert told.endswith(f"report: {page}\n")
    assert page.is_file()
    assert (tmp_path / "pretrain" / "tiny-seed0").is_dir()  # what the novel study would begin with
    assert "--minutes must be above 0, got 0" in refused(*look, "--minutes", "0")
    assert "no cell matches 'moons/*'; cells are named like stars/real" in refused(*look, "--cells", "moons/*")


def test_the_names_in_the_help_are_the_studies():
    from kindgene.cli.study import STUDIES
    from kindgene.studies import registry

    assert STUDIES == registry.STUDIES == tuple(registry._IMPORTS)
