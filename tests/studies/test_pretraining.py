"""The pretrain study at tiny scale: controls are of their size, cells are kept, words follow from figures."""

import json

import pytest

from kindgene.studies.pretraining import MODELS, pretrain_settings, run_pretrain
from kindgene.studies.pretraining_report import pretrain_table, summarise, verdict, write_pretrain


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture(scope="module")
def result(out):
    return run_pretrain(out, scale="tiny", cache=out / "cache")


def test_every_model_is_trained_and_measured(result):
    models = result["models"]
    assert list(models) == list(MODELS)
    for found in models.values():
        assert len(found["validation"]) == 2
        assert found["test"] > 0
        assert set(found["rates"]) == {"0.001", "0.002", "0.004"}
        assert set(found["recognised"]) == {"1.0", "1.5"}
    kind, stored = models["decomposable"], models["dense, equal storage"]["parameters"]
    assert kind["one_class"] < kind["parameters"]
    assert stored == pytest.approx(kind["parameters"], rel=0.5)  # widths are few at this size
    assert models["dense"]["one_class"] == models["dense"]["parameters"]


def test_what_is_finished_is_not_computed_again(result, out, stages):
    heard, show = stages()
    assert run_pretrain(out, scale="tiny", cache=out / "cache", progress=show) == result
    assert heard == []


def test_it_is_written_for_reading_and_for_programs(result, tmp_path):
    write_pretrain(tmp_path, [result, {**result, "seed": 1}])
    found = json.loads((tmp_path / "pretrain.json").read_text())
    assert found["seeds"] == [0, 1]
    assert pretrain_table(found) == (tmp_path / "pretrain.md").read_text()
    page = (tmp_path / "pretrain.html").read_text()
    assert "data:image/png;base64," in page
    assert 'src="http' not in page


def told(kind, dense):
    """The first sentence of the verdict for these test losses, one a seed."""

    def one(seed):
        losses = {"decomposable": kind[seed], "dense": dense[seed], "low rank": 1.0, "dense, equal storage": 1.0}
        costs = {
            "parameters": 1,
            "macs": 1,
            "one_class": 1,
            "rate": 1.0,
            "validation": [1.0],
            "recognised": {"1.0": 1.0},
        }
        models = {name: {**costs, "test": loss} for name, loss in losses.items()}
        facts = {"scale": "tiny", "seed": seed, "settings": {}, "classifier_accuracy": 1.0}
        return {**facts, "models": models}

    return verdict(summarise([one(seed) for seed in range(len(kind))]))[0]


def test_the_words_follow_from_the_figures():
    assert told([0.9, 0.9], [1.0, 1.0]).endswith("-10.0 % (0.9000, 1.0000), in every seed.")
    assert told([0.9, 1.1], [1.0, 1.0]).endswith("within the spread of seeds.")
    assert told([1.1], [1.0]).endswith("+10.0 % (1.1000, 1.0000).")


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="no scale 'huge'; there is tiny, mini, full"):
        pretrain_settings("huge")
