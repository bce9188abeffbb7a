"""The agnostic study at tiny scale: the nine combinations are what they say, figures by hand, words follow."""

import json
import math
import shutil

import pytest
import torch

from kindgene.studies.agnostic import (
    COMBINATIONS,
    MODELS,
    Agnostic,
    agnostic_settings,
    combination,
    judged,
    recombined_as,
)
from kindgene.studies.agnostic_report import summarise, verdict, write_agnostic
from kindgene.studies.cells import run_cells
from kindgene.studies.strips import read_strip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All cells of seed 0. Not to be changed."""
    out = tmp_path_factory.mktemp("agnostic")
    cells = Agnostic(out, scale="tiny", cache=out / "cache")
    assert run_cells([cells]) == (4, 4)
    return cells


@pytest.fixture(scope="module")
def result(study):
    return study.result()


@pytest.fixture
def model(study):
    made = study.new("label-drop-0")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@torch.no_grad()
def test_the_combinations_are_made_of_what_they_say(model):
    x, t, ids = torch.randn(3, 1, 16, 16), torch.tensor([10, 500, 900]), torch.arange(3)
    whole, null = model(x, t, ids), model(x, t, torch.full((3,), 3))
    assert torch.equal(recombined_as(model, "own", "own")(x, t, ids), whole)
    assert torch.equal(recombined_as(model, "other", "other")(x, t, ids), model(x, t, (ids + 1) % 3))
    torch.testing.assert_close(recombined_as(model, "none", "none")(x, t, ids), null)
    outputs = [recombined_as(model, *parts)(x, t, ids) for parts in COMBINATIONS.values()]
    assert len(outputs) == 9
    for index, one in enumerate(outputs):
        assert not any(torch.allclose(one, other) for other in outputs[index + 1 :])
    assert torch.equal(model(x, t, ids), whole)  # the model itself is left alone


def test_they_are_called_by_what_they_are():
    assert combination("own-other") == "own components, other row"
    assert combination("none-none") == "no components, null row"


def test_the_control_has_label_rows_alone(study):
    made = study.new("label-rows-only")
    assert not made.bank.tailors.rows.any()
    assert not made.bank.tailors.rows.requires_grad
    assert made.bank.labels.rows.requires_grad


def test_figures_by_hand():
    asked = torch.tensor([0, 0, 1, 1, 2, 2])
    found = judged(asked, torch.tensor([0, 1, 1, 1, 0, 1]), 3)
    assert found["own"] == pytest.approx(3 / 6)
    assert found["other"] == pytest.approx(2 / 6)  # 0 taken for 1, and 2 for 0
    shares = [2 / 6, 4 / 6]
    assert found["entropy"] == pytest.approx(-sum(share * math.log(share) for share in shares) / math.log(3))
    centred = [0.0, 1.0, -1.0]
    assert found["variance"] == pytest.approx(sum(value**2 for value in centred) / 3)
    assert found["kurtosis"] == pytest.approx((2 / 3) / (2 / 3) ** 2)
    even = judged(asked, asked, 3)
    assert (even["own"], even["entropy"], even["kurtosis"]) == (1.0, pytest.approx(1.0), None)


def test_every_model_is_drawn_from_in_all_ways(result):
    assert set(result["models"]) == set(MODELS)
    for name, found in result["models"].items():
        assert found["final_loss"] > 0
        assert set(found["combinations"]) == set(COMBINATIONS)
        for key, figures in found["combinations"].items():
            assert 0 <= figures["own"] <= 1
            assert read_strip(result["pictures"][f"{name}/{key}"]).shape == (3, 1, 16, 16)
    rows_only = result["models"]["label-rows-only"]["combinations"]
    assert rows_only["own-own"] == rows_only["other-own"] == rows_only["none-own"]


def test_a_cell_again_gives_the_same_figures(study, tmp_path):
    cells = Agnostic(tmp_path, scale="tiny", cache=study.cache)
    name = "label-drop-0.1"
    assert {**cells.get(name), "seconds": None} == {**study.get(name), "seconds": None}
    for key in COMBINATIONS:
        assert cells.picture(f"{name}/{key}").read_bytes() == study.picture(f"{name}/{key}").read_bytes()
    assert [one for one in cells.names() if cells.has(one)] == [name]


def test_what_is_finished_is_not_computed_again(result, study, stages, tmp_path):
    heard, show = stages()
    assert Agnostic(study.root, scale="tiny", cache=study.cache, show=show).result() == result
    assert heard == []
    assert not list((study.folder / "runs").iterdir())  # checkpoints are large
    shutil.copytree(study.folder, tmp_path / "agnostic" / "tiny-seed0")
    other = Agnostic(tmp_path, scale="tiny", seed=1, cache=study.cache)
    assert not any(other.has(name) for name in other.names())


def test_it_is_written_for_reading_and_for_programs(result, tmp_path):
    report = write_agnostic(tmp_path, [result, {**result, "seed": 1}])
    found = json.loads((tmp_path / "agnostic.json").read_text())
    assert found["seeds"] == [0, 1]
    assert "pictures" not in found["runs"][0]
    told = (tmp_path / "README.md").read_text()
    assert "`kindgene study agnostic --scale tiny --seeds 2`" in told
    assert all(sentence in told for sentence in report.verdict)
    assert told.count("| no components, null row |") == 3
    page = (tmp_path / "agnostic.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert 'src="http' not in page
    for name in MODELS:
        assert (tmp_path / f"samples-{name}.png").read_bytes().startswith(b"\x89PNG")


def summary_of(swapped_own, swapped_other, crossed_own, crossed_other):
    """A summary whose whole classes are recognised, with these shares in the two swaps."""

    def figures(own, other):
        return {"own": own, "other": other, "entropy": 0.9, "variance": 0.1, "kurtosis": 2.0}

    found = dict.fromkeys(COMBINATIONS, figures(0.9, 0.0))
    found["other-own"] = figures(swapped_own, swapped_other)
    found["own-other"] = figures(crossed_own, crossed_other)
    result = {
        "scale": "tiny",
        "seed": 0,
        "settings": {},
        "classes": ["a"] * 10,
        "real": {"figures": {**figures(0.97, 0.0), "kurtosis": None}, "extractor": {"name": "eyes"}},
        "models": {name: {"combinations": found} for name in MODELS},
    }
    return summarise([result, {**result, "seed": 1}])


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ((0.1, 0.8, 0.8, 0.1), "the tailor carries the class"),
        ((0.8, 0.1, 0.1, 0.8), "the label row carries the class"),
        ((0.4, 0.45, 0.8, 0.1), "neither part alone carries the class"),
        ((0.8, 0.1, 0.8, 0.1), "neither part alone carries the class"),
    ],
)
def test_the_verdict_follows_from_the_figures(shares, told):
    assert told in " ".join(verdict(summary_of(*shares)))


def test_a_figure_that_a_seed_lacks():
    assert summary_of(0.1, 0.8, 0.8, 0.1)["real"]["kurtosis"] is None


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="has no scale 'huge'; there is tiny, mini, full"):
        agnostic_settings("huge")
