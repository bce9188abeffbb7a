"""Quality against cost: the whole range of a pool's models, planned and, with data, measured."""

import json

import pytest
import torch

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation.pareto import draw_pareto, measure_pareto
from kindgene.models.dit import DiT
from kindgene.progress import NoProgress


@pytest.fixture(scope="module")
def pool():
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", num_classes=3, class_names=["a", "b", "c"], prediction="v")
    for value in dense.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.1)
    kind = KindConfig(num_classes=3, learngene_rank=6, tailor_rank=2, targets="paper+adaln", init="random")
    return make_decomposable(dense, kind, torch.Generator().manual_seed(0)).decompose()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return ArrayDataset(torch.rand(6, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(6) % 2, ("c", "a"))


class Count(NoProgress):
    def __init__(self):
        self.total, self.done, self.closed = 0, [], False

    def start(self, total, done=0):
        self.total = total

    def update(self, done, loss=None, *figures):
        self.done.append((done, loss))

    def close(self):
        self.closed = True


@pytest.mark.parametrize("form", ["gated", "merged"])
def test_the_range_goes_from_everything_to_the_smallest(pool, form):
    classes = ["c", "a"] if form == "gated" else ["c"]
    points = measure_pareto(pool, classes, form=form, points=4)
    costs = [point.plan.cost.parameters for point in points]
    assert costs[0] == pool.plan(classes, form=form).cost.parameters
    with pytest.raises(ValueError, match=f"smallest model has {costs[-1]:,} parameters"):
        pool.plan(classes, form=form, max_parameters=costs[-1] - 1)
    assert costs == sorted(costs, reverse=True)
    losses = [point.plan.loss for point in points]
    assert losses[0] == 0
    assert losses == sorted(losses)
    assert all(point.validation_loss is None for point in points)


def test_with_data_every_model_is_measured(pool, images, tmp_path):
    count = Count()
    points = measure_pareto(pool, ["c", "a"], data=images, points=3, progress=count)
    assert {point.plan.measure for point in points} == {"output"}
    assert all(point.validation_loss > 0 for point in points)
    assert (count.total, [done for done, _ in count.done], count.closed) == (3, [1, 2, 3], True)
    assert [loss for _, loss in count.done] == [point.validation_loss for point in points]
    again = measure_pareto(pool, ["c", "a"], data=images, points=3)
    assert json.dumps([p.to_json() for p in again]) == json.dumps([p.to_json() for p in points])
    for kind, drawn in (("measured", points), ("expected", measure_pareto(pool, ["a"], points=2))):
        draw_pareto(drawn, tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("points", [1, 0, -1, 2.5, True])
def test_fewer_than_two_points_are_no_curve(pool, points):
    with pytest.raises(ValueError, match="points must be"):
        measure_pareto(pool, ["a"], points=points)
