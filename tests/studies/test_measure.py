"""The eyes of the studies: real images, samples, and the judge of far sets."""

import pytest
import torch

from kindgene.evaluation.classifier import Classifier
from kindgene.evaluation.network import NetworkJudge
from kindgene.studies.glyph_models import new_dense
from kindgene.studies.measure import Eyes, Look, best_rate, shown
from kindgene.studies.pretraining import pretrain_settings
from kindgene.studies.source import Glyphs
from kindgene.studies.strips import read_strip

LOOK = Look(samples=3, sampling_steps=2, guidances=(1.0, 2.0), draws=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Glyphs(16, 6, 2, quick=True, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def eyes(source):
    splits = source.splits(source.base[:3])
    return Eyes(splits, source.eyes, source.judge(splits), LOOK, 0)


def test_images_are_those_asked_for(source):
    splits = source.splits(source.novel[5:7])
    assert splits.train.class_names == splits.test.class_names == source.novel[5:7]
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12, 4, 4]
    assert not torch.equal(splits.validation.images, splits.test.images)
    far = source.far("textures", 3)
    assert len(far.train.class_names) == 3
    assert len(far.train) == 18


def test_of_digits_there_are_no_more_than_there_are(source):
    many = Glyphs(16, 200, 50, quick=True, cache=source.cache)
    digits = many.far("digits", 2)
    assert 100 <= digits.train.counts()["0"] < 200
    assert 30 <= digits.test.counts()["0"] < 50


def test_who_judges(source, eyes):
    assert isinstance(eyes.judge, NetworkJudge)
    assert eyes.judge.class_names == source.base[:3]
    assert isinstance(source.judge(source.far("stars", 2)), Classifier)


def test_what_figures_were_measured_with(source, eyes):
    found = eyes.told()
    assert found["sampler"] == "ddim"
    assert (found["sampling_steps"], found["samples_per_class"], found["guidances"]) == (2, 3, [1.0, 2.0])
    assert found["extractor"] == source.eyes.to_dict()
    assert found["judge"]["kind"] == "network"
    splits = source.far("stars", 2)
    far = Eyes(splits, source.eyes, source.judge(splits), LOOK, 0).told()["judge"]
    assert far["kind"] == "support vector machine on pixels"
    assert far["held_out"] == len(splits.test)
    assert Eyes(splits, source.eyes, None, LOOK, 0).told()["judge"] is None


def test_a_models_figures(eyes, tmp_path):
    model = new_dense(eyes.splits.train.class_names, pretrain_settings("tiny"), 0)
    found = eyes.figures(model, tmp_path / "x.png")
    assert found["test"] == eyes.loss(model, eyes.splits.test)
    assert set(found["fd"]) == set(found["recognised"]) == {"1.0", "2.0"}
    assert all(0 <= share <= 1 for share in found["recognised"].values())
    assert all(distance > 0 for distance in found["fd"].values())
    assert read_strip(tmp_path / "x.png").shape == (6, 1, 16, 16)
    assert eyes.figures(model, tmp_path / "y.png") == found


def test_real_images_are_nearer_than_noise(eyes, tmp_path):
    real = eyes.real(tmp_path / "x.png")
    noise = torch.rand(30, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    from kindgene.evaluation.frechet import frechet_distance

    assert real["fd"] < frechet_distance(eyes.reference, eyes.seen(noise))


def test_what_is_shown():
    assert shown(2, 5).tolist() == [0, 1, 5, 6]
    assert shown(3, 1).tolist() == [0, 1, 2]
    assert len(shown(150, 32)) == 16
    assert shown(150, 32)[-2:].tolist() == [149 * 32, 149 * 32 + 1]


def test_the_best_rate():
    curves = [(0.1, {"validation": [3.0, 1.0]}), (0.2, {"validation": [0.5, 2.0]}), (0.3, {"validation": []})]
    assert best_rate(curves) == 0.1
    with pytest.raises(ValueError, match=r"diverged at every learning rate: 0\.3"):
        best_rate(curves[2:])
