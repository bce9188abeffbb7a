"""The elastic study at tiny scale: every curve is there, costs are those of the models, cells are not trained twice."""

import json

import pytest

from kindgene.studies.cells import run_cells
from kindgene.studies.elastic import CURVES, SCALES, Elastic, elastic_settings
from kindgene.studies.elastic_report import at_size, summarise, verdict, write_elastic


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All cells of seed 0. Not to be changed."""
    out = tmp_path_factory.mktemp("elastic")
    cells = Elastic(out, scale="tiny", cache=out / "cache")
    assert run_cells([cells]) == (11, 11)
    return cells


@pytest.fixture(scope="module")
def result(study):
    return study.result()


def test_every_curve_has_its_points(result):
    assert result["deployed_classes"] == result["base_classes"][:2]
    assert set(result["curves"]) == set(CURVES)
    for name, curve in result["curves"].items():
        assert curve, name
        costs = [point["parameters"] for point in curve]
        assert costs == sorted(costs, reverse=True), name
        assert all(0 < point["loss"] < 10 for point in curve), name


def test_the_whole_prefix_costs_what_the_whole_plan_costs(result):
    curves = result["curves"]
    whole = curves["plain-planned"][0]
    prefix = curves["plain-prefixes"][0]
    assert whole["parameters"] == prefix["parameters"]
    assert whole["loss"] == pytest.approx(prefix["loss"], rel=1e-4)


def test_finished_cells_are_taken_over(result, study, stages):
    heard, show = stages()
    again = Elastic(study.root, scale="tiny", cache=study.cache, show=show)
    assert again.result() == result
    assert heard == []
    assert again.compute("curve/elastic-prefixes")["points"] == result["curves"]["elastic-prefixes"]
    assert [stage.began for stage in heard] == [stage.total for stage in heard]  # trained already


def test_a_curve_trains_what_it_needs(study, tmp_path):
    cells = Elastic(tmp_path, scale="tiny", cache=study.cache)
    assert cells.get("curve/svd-prefixes") == study.get("curve/svd-prefixes")
    assert [name for name in cells.names() if cells.has(name)] == ["model/dense", "curve/svd-prefixes"]


def test_it_is_written_for_reading_and_for_programs(result, tmp_path):
    report = write_elastic(tmp_path, [result, {**result, "seed": 1}])
    found = json.loads((tmp_path / "elastic.json").read_text())
    assert found["seeds"] == [0, 1]
    told = (tmp_path / "README.md").read_text()
    assert "`kindgene study elastic --scale tiny --seeds 2`" in told
    assert all(sentence in told for sentence in report.verdict)
    (table,) = report.tables
    assert len(table.rows) == sum(len(points) for points in found["curves"].values())
    assert "![Loss against parameters" in told
    assert (tmp_path / "elastic.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "elastic.html").read_text().count("data:image/png;base64,") == 1


def said(losses):
    """The verdict where each way has a point of all, and one of half of the parameters."""
    curves = {
        name: [{"parameters": 100, "loss": whole}, {"parameters": 52, "loss": half}]
        for name, (whole, half) in losses.items()
    }
    result = {"scale": "tiny", "seed": 0, "settings": {}, "curves": curves}
    return verdict(summarise([result]))


def test_the_words_follow_from_the_figures():
    losses = dict.fromkeys(CURVES, (1.0, 1.1)) | {"elastic-planned": (1.2, 1.0), "svd-planned": (1.0, 2.2)}
    plain, elastic, svd, one_share, anew, whole = said(losses)
    assert plain == "The plain pool at 52 of 100 parameters: loss +10.0 % (one seed) against whole."
    assert "elastic pool, planned, at 52 parameters: loss +10.0 %" in elastic
    assert "SVD of the dense twin, planned, at 52 parameters: loss -50.0 %" in svd
    assert "one rank share, at 52 parameters: loss even" in one_share
    assert "trained anew, at 52 parameters: loss even" in anew
    assert "whole, against plain: loss +20.0 %" in whole


def test_ways_are_compared_at_equal_size():
    points = [
        {"parameters": 200, "loss": {"mean": 1.0, "least": 0.9, "most": 1.1}},
        {"parameters": 100, "loss": {"mean": 2.0, "least": 1.9, "most": 2.1}},
    ]
    assert at_size(points, 199) == (points[0], "")  # near enough
    found, between = at_size(points, 175)
    assert found == {"parameters": 175, "loss": pytest.approx({"mean": 1.25, "least": 1.15, "most": 1.35})}
    assert between == " (on the line between 100 and 200)"
    assert at_size(points, 300) == (points[0], "")
    assert at_size(points, 50) == (points[1], "")


def test_unknown_scales_are_refused():
    assert set(SCALES) == {"tiny", "mini", "full"}
    with pytest.raises(ValueError, match="no scale 'huge'; there is tiny, mini, full"):
        elastic_settings("huge")
