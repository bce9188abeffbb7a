"""The elastic study at tiny scale: every curve is there, costs are those of the models, cells are not trained twice."""

import pytest

from kindgene.progress import NoProgress
from kindgene.studies.elastic import SCALES, elastic_settings, run_elastic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def result(folder):
    return run_elastic(folder / "out", scale="tiny", cache=folder / "cache")


def test_every_curve_has_its_points(result):
    assert result["deployed_classes"] == result["base_classes"][:2]
    assert len(result["curves"]) == 7
    for name, curve in result["curves"].items():
        assert curve, name
        costs = [point["parameters"] for point in curve]
        assert costs == sorted(costs, reverse=True), name
        assert all(0 < point["loss"] < 10 for point in curve), name


def test_the_whole_prefix_costs_what_the_whole_plan_costs(result):
    curves = result["curves"]
    whole = curves["plain pool, planned"][0]
    prefix = curves["plain pool, canonical prefixes"][0]
    assert whole["parameters"] == prefix["parameters"]
    assert whole["loss"] == pytest.approx(prefix["loss"], rel=1e-4)


def test_finished_cells_are_taken_over(result, folder):
    trained = []

    class Watch(NoProgress):
        def __init__(self, cell):
            self.cell = cell

        def update(self, done, *figures):
            trained.append(self.cell)

    again = run_elastic(folder / "out", scale="tiny", cache=folder / "cache", progress=Watch)
    assert not trained
    assert again["curves"] == result["curves"]


def test_unknown_scales_are_refused():
    assert set(SCALES) == {"tiny", "mini"}
    with pytest.raises(ValueError, match="no scale 'huge'; there is tiny, mini"):
        elastic_settings("huge")
