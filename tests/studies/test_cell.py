"""A training measured on its way: interrupted anywhere, it goes on to the same figures and weights."""

import pytest
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.studies.cell import train_curve
from kindgene.studies.glyph_models import new_dense
from kindgene.studies.pretraining import pretrain_settings
from kindgene.training.config import TrainConfig

NAMES = ("a", "b")
CONFIG = TrainConfig(steps=8, batch_size=4, learning_rate=1e-2, checkpoint_every=3, checkpoints_total_limit=1)
SHARES = (0.25, 0.5, 1.0)


@pytest.fixture
def data():
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ArrayDataset(images, torch.arange(8) % 2, NAMES)


def new():
    return new_dense(NAMES, pretrain_settings("tiny"), 0)


def size(model):
    """Something that follows from the weights."""
    return float(sum(value.detach().double().square().sum() for value in model.parameters()))


def test_it_is_measured_at_each_share(data, tmp_path, stages):
    heard, show = stages()
    model = new()
    curve = train_curve(model, data, CONFIG, SHARES, size, tmp_path / "run", show("run"))
    assert len(set(curve.validation)) == 3
    assert curve.validation[-1] == size(model)
    assert curve.seconds > 0
    (stage,) = heard
    assert (stage.total, stage.began, stage.reached, stage.closed) == (8, 0, 8, True)  # one bar for all parts


@pytest.mark.parametrize("at", [1, 2, 4, 5, 8])
def test_interrupted_it_goes_on_to_the_same(data, tmp_path, stages, at):
    whole = new()
    expected = train_curve(whole, data, CONFIG, SHARES, size, tmp_path / "whole")

    def interrupt():
        raise KeyboardInterrupt

    _, show = stages(("run", at, interrupt))
    with pytest.raises(KeyboardInterrupt):
        train_curve(new(), data, CONFIG, SHARES, size, tmp_path / "run", show("run"))
    model = new()
    assert train_curve(model, data, CONFIG, SHARES, size, tmp_path / "run").validation == expected.validation
    assert size(model) == size(whole)


def test_interrupted_while_it_was_measured(data, tmp_path):
    expected = train_curve(new(), data, CONFIG, SHARES, size, tmp_path / "whole")
    seen = []

    def stop_at_the_second(model):
        seen.append(model)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return size(model)

    with pytest.raises(KeyboardInterrupt):
        train_curve(new(), data, CONFIG, SHARES, stop_at_the_second, tmp_path / "run")
    measured = []
    again = train_curve(new(), data, CONFIG, SHARES, lambda model: measured.append(0) or size(model), tmp_path / "run")
    assert again.validation == expected.validation
    assert len(measured) == 2  # the first was kept


def test_finished_it_is_taken_over(data, tmp_path):
    first = train_curve(new(), data, CONFIG, SHARES, size, tmp_path / "run")
    model, measured = new(), []
    again = train_curve(model, data, CONFIG, SHARES, measured.append, tmp_path / "run")
    assert again == first
    assert measured == []
    assert size(model) == first.validation[-1]


def test_a_training_that_diverges_has_no_curve(data, tmp_path):
    model = new()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    curve = train_curve(model, data, CONFIG, SHARES, size, tmp_path / "run")
    assert (curve.validation, curve.seconds) == ([], None)
