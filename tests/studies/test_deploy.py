"""The deploy study at tiny scale: what is compared is what it is called, a cell again is the same, words follow."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from kindgene.pool.budget import ImpossibleBudgetError
from kindgene.studies import deploy
from kindgene.studies.cell import Curve
from kindgene.studies.cells import run_cells
from kindgene.studies.deploy import CUT, DENSE, MERGED, ROWS, SCALES, SCRATCH, WHOLE, Deploy, deploy_settings, latency
from kindgene.studies.deploy_report import summarise, verdict, write_deploy
from kindgene.studies.pretraining import SCALES as PRETRAINED


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All cells of seed 0. Not to be changed."""
    out = tmp_path_factory.mktemp("deploy")
    cells = Deploy(out, scale="tiny", cache=out / "cache")
    assert run_cells([cells]) == (11, 11)
    return cells


@pytest.fixture(scope="module")
def result(study):
    return study.result()


def again(study, out):
    """The same study elsewhere, with what was pre-trained."""
    shutil.copytree(study.root / "pretrain", out / "pretrain")
    return Deploy(out, scale="tiny", cache=study.cache)


def test_every_model_is_measured_on_every_set(result):
    assert list(result["sets"]) == ["1", "3"]
    assert list(result["sets"]["1"]["rows"]) == list(ROWS)
    assert [*result["sets"]["3"]["rows"], MERGED] == sorted(ROWS, key=lambda row: row == MERGED)
    for found in result["sets"].values():
        for row, one in found["rows"].items():
            assert one["test"] > 0
            assert one["validation"] > 0
            guidances = {"1.0"} if row == MERGED else {"1.0", "1.5"}  # it has no null class
            assert set(one["recognised"]) == set(one["fd"]) == guidances
            assert set(one["latency"]) == {"1", "2"}
            assert one["bytes"] > 4 * one["parameters"]
        assert found["rows"][SCRATCH]["curve"][-1] == pytest.approx(found["rows"][SCRATCH]["validation"])


def test_the_costs_follow_the_classes(result, study):
    one, all_three = (result["sets"][count]["rows"] for count in ("1", "3"))
    width = study.base.settings.width
    assert all_three[DENSE]["parameters"] - one[DENSE]["parameters"] == 2 * width  # label rows alone
    assert all_three[WHOLE]["parameters"] - one[WHOLE]["parameters"] > 10 * width  # tailors
    for rows in (one, all_three):
        assert rows[CUT]["parameters"] <= study.settings.share * rows[WHOLE]["parameters"]
        assert rows[SCRATCH]["parameters"] == pytest.approx(rows[WHOLE]["parameters"], rel=0.5)  # widths are few


def test_of_all_classes_the_models_are_the_pretrain_studys(result, study):
    whole, base = result["sets"]["3"]["rows"], study.base
    assert study.classes(3) == base.classes
    assert whole[WHOLE]["test"] == pytest.approx(base.get("decomposable/final")["test"], rel=1e-5)
    assert whole[DENSE]["test"] == pytest.approx(base.get("dense/final")["test"], rel=1e-6)
    assert whole[SCRATCH]["test"] == pytest.approx(base.get("dense-equal/final")["test"], rel=1e-6)


def test_one_class_merged_is_the_same_model(result):
    rows = result["sets"]["1"]["rows"]
    assert rows[MERGED]["test"] == pytest.approx(rows[WHOLE]["test"], rel=1e-5)
    assert rows[MERGED]["macs"] < rows[WHOLE]["macs"]


def test_of_few_classes_the_models_give_what_they_give_for_these(study):
    """Recombined, and the dense twin with fewer label rows: the same images as from the whole models."""
    names = study.classes(1)
    label = study.base.classes.index(names[0])
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 500])
    for few, whole in (
        (study.recombined(1, WHOLE), study.base.model("decomposable")),
        (study.dense(1), study.base.model("dense")),
    ):
        assert few.class_names == names
        for own, its in ((0, label), (few.null_class, whole.null_class)):
            with torch.no_grad():
                mine = few.cpu()(x, t, torch.full((2,), own))
                assert torch.allclose(mine, whole.cpu().eval()(x, t, torch.full((2,), its)), atol=1e-5)


def test_samples_of_few_classes_are_many_and_judged_among_all(study):
    assert study.eyes(1).look.samples == 4
    assert study.eyes(3).look.samples == 2
    assert study.eyes(1).judge.class_names == study.base.classes
    assert study.eyes(1).splits.train.class_names == study.classes(1)


def test_sets_are_evenly_spaced(study, monkeypatch):
    monkeypatch.setattr(study.base, "classes", tuple("abcdefghijklmnopqrstuvwx"))
    assert study.classes(5) == ("a", "e", "j", "o", "t")
    assert len(set(study.classes(15))) == 15
    assert study.classes(24) == study.base.classes


@pytest.mark.parametrize("scale", SCALES)
def test_no_set_is_larger_than_the_base_classes(scale):
    assert max(deploy_settings(scale).sets) == PRETRAINED[scale].classes


@pytest.mark.parametrize("name", [f"1/{WHOLE}", f"1/{CUT}", f"1/{SCRATCH}"])
def test_a_cell_again_gives_the_same_figures(study, tmp_path, name):
    cells = again(study, tmp_path)
    timed = {"latency": None, "seconds": None}
    assert {**cells.get(name), **timed} == {**study.get(name), **timed}
    assert cells.picture(name).read_bytes() == study.picture(name).read_bytes()


def test_what_is_finished_is_not_computed_again(result, study, stages):
    heard, show = stages()
    assert Deploy(study.root, scale="tiny", cache=study.cache, show=show).result() == result
    assert heard == []
    assert not [path for path in (study.folder / "runs").rglob("*") if path.is_file()]  # checkpoints are large


def test_a_budget_that_cannot_be_met_and_a_training_that_diverges_are_kept_as_such(study, tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, "SCALES", {"tiny": replace(SCALES["tiny"], share=0.1)})
    cells = again(study, tmp_path)
    with pytest.raises(ImpossibleBudgetError):
        cells.recombined(1, CUT)
    assert "parameters is impossible" in cells.get(f"1/{CUT}")["refused"]
    monkeypatch.setattr(deploy, "train_curve", lambda *some: Curve([], None))
    assert cells.get(f"1/{SCRATCH}") == {"refused": "it diverged at a learning rate of 0.004, the dense twin's best"}


def test_latency_is_of_both_in_turn(study):
    calls = []

    class Slow(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.config = name, study.dense(3).config

        def forward(self, x, t, y):
            calls.append((self.name, len(x), y.tolist()))

    found = latency(Slow("own"), Slow("beside"), 2, 4)
    assert [name for name, *_ in calls] == (["beside", "own", "own", "beside"] * 4)[:14]
    assert calls[0] == ("beside", 2, [0, 1])
    assert found["milliseconds"] > 0
    assert found["ratio"] > 0


def test_what_is_ahead_can_be_told(tmp_path):
    told = Deploy(tmp_path, scale="tiny").outlook()
    assert told["cells"] == 11
    assert len(told["sets"]["3"]) == 3
    assert not list(tmp_path.iterdir())


def test_it_is_written_for_reading_and_for_programs(result, tmp_path):
    report = write_deploy(tmp_path, [result, {**result, "seed": 1}])
    found = json.loads((tmp_path / "deploy.json").read_text())
    assert found["seeds"] == [0, 1]
    told = (tmp_path / "README.md").read_text()
    assert "`kindgene study deploy --scale tiny --seeds 2`" in told
    assert all(sentence in told for sentence in report.verdict)
    page = (tmp_path / "deploy.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page
    for name in ("costs", "samples"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def row(test, parameters, **more):
    """A row's figures."""
    return {
        "parameters": parameters,
        "macs": parameters,
        "bytes": 4 * parameters,
        "test": test,
        "recognised": {"1.5": 0.5},
        "fd": {"1.5": 1.0},
        "latency": {"1": {"milliseconds": 2.0, "ratio": 1.25}},
        **more,
    }


def said(*sets):
    """The verdict on these sets, {row: figures} each, of 1, 2, ... classes."""
    found = {
        str(number): {"classes": ["a"] * number, "real": {"recognised": 1.0, "fd": 0.0}, "rows": rows}
        for number, rows in enumerate(sets, start=1)
    }
    return verdict(
        summarise([{"scale": "tiny", "seed": 0, "settings": {"pretraining": {"classes": 2}}, "sets": found}])
    )


def test_the_words_follow_from_the_figures():
    scratch = row(0.8, 70, curve=[0.9, 0.8], rate=0.1)
    first = {WHOLE: row(1.1, 60), CUT: row(1.65, 30), DENSE: row(1.0, 100), SCRATCH: scratch}
    second = {WHOLE: row(1.0, 120), CUT: {"refused": "no"}, DENSE: row(1.0, 100), SCRATCH: {"refused": "no"}}
    assert "these classes alone: test loss" in said(first, {**second, SCRATCH: scratch})[1]  # of all, no more often
    one, two, sizes, times = said(first, second)
    assert one.startswith("1 class: KIND with 60 % of the dense twin's parameters and 60 % of its multiply-adds")
    assert "test loss +10.0 % (one seed), recognised 50.0% against 50.0% at guidance 1.5" in one
    assert "these classes alone, which saw each of them 2 times as often: test loss +37.5 % (one seed)" in one
    assert (
        "with 50 % of its own parameters, nothing trained, against the whole one: test loss +50.0 % (one seed)" in one
    )
    assert two.startswith("2 classes: KIND with 120 %")
    assert "test loss even (+0.0 %)" in two
    assert "from scratch" not in two
    assert "cannot be made so much smaller" in two
    assert sizes == "KIND has fewer parameters than the dense twin for class sets of 1, more for 2."
    assert "1.25 times with 1 image, on 0.60 to 1.20 times its multiply-adds" in times
    assert "fewer parameters than the dense twin for every number" in said(first)[1]
    assert "more parameters than the dense twin for every number" in said(second)[-2]
    assert said({WHOLE: {"refused": "no"}, DENSE: row(1.0, 100)}) == []


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="no scale 'huge'; there is tiny, mini, full"):
        deploy_settings("huge")
