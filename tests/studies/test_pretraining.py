"""The pretrain study at tiny scale: controls are of their size, a cell again is the same, words follow from figures."""

import copy
import json
import shutil

import pytest

from kindgene.core.decomposable import Decomposable
from kindgene.studies.cells import run_cells
from kindgene.studies.pretraining import MODELS, Pretraining, pretrain_settings
from kindgene.studies.pretraining_report import summarise, verdict, write_pretrain


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All cells of seed 0. Not to be changed."""
    out = tmp_path_factory.mktemp("pretrain")
    cells = Pretraining(out, scale="tiny", cache=out / "cache")
    assert run_cells([cells]) == (17, 17)
    return cells


@pytest.fixture(scope="module")
def result(study):
    return study.result()


def test_every_model_is_trained_and_measured(result):
    models = result["models"]
    assert list(models) == list(MODELS)
    for found in models.values():
        assert len(found["validation"]) == 2
        assert found["test"] > 0
        assert set(found["rates"]) == {"0.001", "0.002", "0.004"}
        last = {rate: losses[-1] for rate, losses in found["rates"].items()}
        assert f"{found['rate']:g}" == min(last, key=last.get)
        assert found["validation"] == found["rates"][f"{found['rate']:g}"]
        assert set(found["recognised"]) == set(found["fd"]) == {"1.0", "1.5"}
    kind, stored = models["decomposable"], models["dense-equal"]["parameters"]
    assert kind["one_class"] < kind["parameters"]
    assert stored == pytest.approx(kind["parameters"], rel=0.5)  # widths are few at this size
    assert models["dense"]["one_class"] == models["dense"]["parameters"]


def test_a_cell_again_gives_the_same_figures(study, tmp_path):
    """From nothing: training, choice of the rate, samples and picture."""
    cells = Pretraining(tmp_path, scale="tiny", cache=study.cache)
    again, before = cells.get("dense/final"), study.get("dense/final")
    assert {**again, "seconds": None} == {**before, "seconds": None}
    assert cells.picture("dense/final").read_bytes() == study.picture("dense/final").read_bytes()
    assert [name for name in cells.names() if cells.has(name)] == [
        *(f"dense/{rate:g}" for rate in cells.settings.rates),
        "dense/final",
    ]


def test_what_is_finished_is_not_computed_again(result, study, stages):
    heard, show = stages()
    assert Pretraining(study.root, scale="tiny", cache=study.cache, show=show).result() == result
    assert heard == []


def test_another_seed_takes_the_rate_of_the_first(study, tmp_path):
    shutil.copytree(study.folder, tmp_path / "pretrain" / "tiny-seed0")
    second = Pretraining(tmp_path, scale="tiny", seed=1, cache=study.cache)
    assert [name for name in second.names() if name.startswith("dense/")] == ["dense/final"]
    found, first = second.get("dense/final"), study.get("dense/final")
    assert found["rate"] == first["rate"]
    assert found["test"] != first["test"]


def test_the_trained_model_is_given_and_the_others_go(study):
    model = study.model("decomposable")
    assert isinstance(model, Decomposable)
    assert study.eyes.loss(model, study.splits.test) == study.get("decomposable/final")["test"]
    assert [path.name for path in (study.folder / "runs" / "decomposable").iterdir()] == [
        f"{study.rate('decomposable'):g}"
    ]


def test_a_model_whose_checkpoint_is_gone_is_trained_anew(study, tmp_path):
    shutil.copytree(study.folder, tmp_path / "pretrain" / "tiny-seed0")
    shutil.rmtree(tmp_path / "pretrain" / "tiny-seed0" / "runs")
    carried = Pretraining(tmp_path, scale="tiny", cache=study.cache)
    assert carried.eyes.loss(carried.model("dense"), carried.splits.test) == study.get("dense/final")["test"]


def test_it_is_written_for_reading_and_for_programs(result, tmp_path):
    report = write_pretrain(tmp_path, [result, {**result, "seed": 1}])
    found = json.loads((tmp_path / "pretrain.json").read_text())
    assert found["seeds"] == [0, 1]
    assert "pictures" not in found["runs"][0]  # places on this machine
    told = (tmp_path / "README.md").read_text()
    assert "`kindgene study pretrain --scale tiny --seeds 2`" in told
    assert all(sentence in told for sentence in report.verdict)
    page = (tmp_path / "pretrain.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page
    for name in ("curves", "samples"):
        assert f"({name}.png)" in told
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_losses_at_every_learning_rate_stand_side_by_side(result, tmp_path):
    changed = copy.deepcopy(result)
    kind, dense = (changed["models"][name]["rates"] for name in ("decomposable", "dense"))
    kind["0.001"], dense["0.001"], dense["0.004"] = [0.45, 0.2], [0.5, 0.1], []
    table = write_pretrain(tmp_path / "three", [changed]).tables[1]
    assert table.title.endswith("seed 0: after 50% of the steps and at the end")
    assert (table.rows[0][0], *table.rows[0][1:3]) == ("0.001", "0.4500, 0.2000", "0.5000, 0.1000")
    assert table.rows[0][-1] == "-10.0 %, +100.0 %"
    assert (table.rows[2][2], table.rows[2][-1]) == ("diverged", "-")
    for found in changed["models"].values():
        found["rates"] = {"0.002": found["rates"]["0.002"]}
    assert len(write_pretrain(tmp_path / "one", [changed]).tables) == 1


def said(kind, dense):
    """The first sentence of the verdict for these test losses, one a seed."""

    def one(seed):
        losses = {"decomposable": kind[seed], "dense": dense[seed], "low-rank": 1.0, "dense-equal": 1.0}
        costs = {"parameters": 1, "macs": 1, "one_class": 1, "rate": 1.0, "rates": {}, "seconds": 1.0}
        figures = {"validation": [1.0], "recognised": {"1.0": 1.0}, "fd": {"1.0": 1.0}}
        models = {name: {**costs, **figures, "test": loss} for name, loss in losses.items()}
        return {"scale": "tiny", "seed": seed, "settings": {}, "real": {}, "models": models}

    return verdict(summarise([one(seed) for seed in range(len(kind))]))[0]


def test_the_words_follow_from_the_figures():
    assert "test loss -10.0 %, in every seed; FD without guidance even (+0.0 %)" in said([0.9, 0.9], [1.0, 1.0])
    assert "test loss +5.0 %, within the spread of seeds" in said([0.9, 1.2], [1.0, 1.0])
    assert "test loss +10.0 % (one seed)" in said([1.1], [1.0])


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="no scale 'huge'; there is tiny, mini, full"):
        pretrain_settings("huge")
