"""The agnostic study at tiny scale: the nine cells are what they say, the figures are by hand, cells are not redone."""

import json
import math

import pytest
import torch

from kindgene.studies import agnostic
from kindgene.studies.agnostic import PARTS, agnostic_settings, judged, new_model, recombined_as, run_agnostic
from kindgene.studies.agnostic_report import CELLS, agnostic_table, summarise, verdict, write_agnostic

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model():
    made = new_model(NAMES, agnostic_settings("tiny"), 0, label_rows_only=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@torch.no_grad()
def test_the_cells_are_made_of_what_they_say(model):
    x, t, ids = torch.randn(3, 1, 16, 16), torch.tensor([10, 500, 900]), torch.arange(3)
    whole, null = model(x, t, ids), model(x, t, torch.full((3,), 3))
    assert torch.equal(recombined_as(model, "own", "own")(x, t, ids), whole)
    assert torch.equal(recombined_as(model, "other", "other")(x, t, ids), model(x, t, (ids + 1) % 3))
    torch.testing.assert_close(recombined_as(model, "none", "none")(x, t, ids), null)
    outputs = [recombined_as(model, components, row)(x, t, ids) for components in PARTS for row in PARTS]
    for index, one in enumerate(outputs):
        assert not any(torch.allclose(one, other) for other in outputs[index + 1 :])
    assert torch.equal(model(x, t, ids), whole)  # the model itself is left alone


def test_the_control_has_label_rows_alone():
    made = new_model(NAMES, agnostic_settings("tiny"), 0, label_rows_only=True)
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


def summary_of(swapped_own, swapped_other, crossed_own, crossed_other):
    """A summary whose whole classes are recognised, with these shares in the two swaps."""

    def cell(own, other):
        return {"own": own, "other": other, "entropy": 0.9, "variance": 0.1, "kurtosis": 2.0}

    cells = dict.fromkeys(CELLS, cell(0.9, 0.0))
    cells["other components, own row"] = cell(swapped_own, swapped_other)
    cells["own components, other row"] = cell(crossed_own, crossed_other)
    result = {
        "scale": "tiny",
        "seed": 0,
        "settings": {"classes": 10, "steps": 3},
        "classifier_accuracy": 0.97,
        "real": cell(0.97, 0.0),
        "models": {name: {"cells": cells} for name in agnostic.MODELS},
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


def test_it_runs_goes_on_and_is_written(tmp_path, stages):
    heard, show = stages()
    first = run_agnostic(tmp_path, scale="tiny", progress=show, cache=tmp_path / "cache")
    assert len(heard) == 3
    again = run_agnostic(tmp_path, scale="tiny", cache=tmp_path / "cache")
    assert first["models"].keys() == again["models"].keys()
    for name, cells in first["models"].items():
        assert again["models"][name]["cells"] == cells["cells"]  # finished cells are read, and draw the same
    other = run_agnostic(tmp_path, scale="tiny", seed=1, cache=tmp_path / "cache")
    write_agnostic(tmp_path / "out", [first, other])
    found = json.loads((tmp_path / "out" / "agnostic.json").read_text())
    assert found["seeds"] == [0, 1]
    assert agnostic_table(found) == (tmp_path / "out" / "agnostic.md").read_text()
    page = (tmp_path / "out" / "agnostic.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert 'src="http' not in page


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="has no scale 'huge'; there is tiny, mini, full"):
        agnostic_settings("huge")
