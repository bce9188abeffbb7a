"""Metrics by name: each is the function it stands for; what is missing is refused, what misleads is noted."""

import contextlib
import dataclasses
import pickle

import pytest
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation.classifier import tally
from kindgene.evaluation.evaluate import evaluate_samples
from kindgene.evaluation.features import to_pixels
from kindgene.evaluation.frechet import frechet_distance
from kindgene.evaluation.inception_score import InceptionScore
from kindgene.evaluation.metrics import METRICS, all_of, check_extractor, check_metrics, class_note
from kindgene.evaluation.neighbours import precision_recall
from kindgene.evaluation.reference import make_reference
from kindgene.evaluation.statistics import Statistics

ASKED = ["a", "b"] * 10
OF_FEATURES = ["fd", "sfid", "is", "precision", "recall"]


@pytest.fixture
def samples():
    return torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(5)) * 2.4 - 1.2  # some beyond black, white


@pytest.fixture
def real(toy, grey):
    return make_reference(grey, toy, data="greys", features=30)


class Bright:
    """Takes bright images for "b"."""

    class_names = ("a", "b")

    def predict(self, images):
        return (images.mean((1, 2, 3)) > 0).long()


def blocks_of(samples, size):
    return [(samples[n : n + size], range(n, min(n + size, len(samples)))) for n in range(0, len(samples), size)]


def gaussian(features):
    statistics = Statistics(features.shape[1])
    statistics.update(features)
    return statistics.gaussian()


@pytest.mark.parametrize(("block", "batch"), [(20, 64), (7, 3), (1, 1)])
def test_figures_are_those_of_the_parts_however_samples_come(toy, grey, real, samples, block, batch):
    wanted = [*OF_FEATURES, "recognised"]
    found = evaluate_samples(
        blocks_of(samples, block), ASKED, wanted, extractor=toy, reference=real, judge=Bright(), batch_size=batch
    )
    truth, made = toy(to_pixels(grey.images)), toy(to_pixels(samples))
    score = InceptionScore(20)
    score.update(made.logits, torch.arange(20))
    precision, recall = precision_recall(truth.pooled, made.pooled)
    expected = {
        "fd": frechet_distance(gaussian(truth.pooled), gaussian(made.pooled)),
        "sfid": frechet_distance(gaussian(truth.spatial), gaussian(made.spatial)),
        "is": score.value(),
        "precision": precision,
        "recall": recall,
    }
    assert found.figures == pytest.approx(expected, rel=1e-9)
    assert list(found.figures) == OF_FEATURES
    assert found.recognised == tally(Bright(), Bright().predict(samples), ASKED)
    assert found.recognised.per_class.keys() == {"a", "b"}


class Many:
    """Processes that take turns within this one: what each tells is kept, and the last one hears of all."""

    def __init__(self, size, told):
        self.size, self._told, self._turn = size, told, 0

    def gather(self, value):
        kept = self._told.setdefault(self._turn, [])
        self._turn += 1
        kept.append(pickle.loads(pickle.dumps(value)))
        return kept


def test_processes_together_measure_what_one_does(toy, real, samples):
    """Three processes, of which one has no block at all."""
    wanted = [*OF_FEATURES, "recognised"]
    given = {"extractor": toy, "reference": real, "judge": Bright()}
    expected = evaluate_samples([(samples, range(20))], ASKED, wanted, **given)
    blocks, told = blocks_of(samples, 13), {}
    for share in ([], blocks[:1]):
        with contextlib.suppress(ValueError):  # alone they have not seen enough
            evaluate_samples(share, ASKED, wanted, **given, processes=Many(3, told))
    found = evaluate_samples(blocks[1:], ASKED, wanted, **given, processes=Many(3, told))
    assert found.figures == pytest.approx(expected.figures, rel=1e-9)
    assert (found.recognised, found.notes) == (expected.recognised, expected.notes)


def test_real_images_against_themselves(toy, grey, real):
    """No distance, and all within the manifold."""
    asked = ["a"] * 30
    wanted = ["fd", "sfid", "precision", "recall"]
    found = evaluate_samples([(grey.images, range(30))], asked, wanted, extractor=toy, reference=real)
    assert found.figures == pytest.approx({"fd": 0, "sfid": 0, "precision": 1, "recall": 1}, abs=1e-10)
    assert (found.recognised, found.notes) == (None, [])


def test_fid_is_of_inception_alone(toy, real, samples):
    blocks = [(samples, range(20))]
    with pytest.raises(ValueError, match="fid is of Inception alone; with the toy extractor ask for fd"):
        evaluate_samples(blocks, ASKED, ["fid"], extractor=toy, reference=real)
    fd = evaluate_samples(blocks, ASKED, ["fd"], extractor=toy, reference=real).figures["fd"]
    toy.name = "inception"
    assert evaluate_samples(blocks, ASKED, ["fid"], extractor=toy, reference=real).figures == {"fid": fd}


def test_an_extractor_gives_what_it_has(toy):
    toy.has_spatial = toy.has_logits = False
    with pytest.raises(ValueError, match="no spatial features"):
        check_extractor(["sfid"], toy)
    with pytest.raises(ValueError, match="no classes"):
        check_extractor(["is"], toy)
    for name in ("digits", "glyphs", "dinov2", "inception"):
        assert set(all_of(name)) <= set(METRICS)
    assert ("fid" in all_of("inception"), "is" in all_of("dinov2")) == (True, False)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (["fod"], "unknown metric 'fod'; there are fd, fid, sfid"),
        ([], "unknown metric"),
        (["fd", "fd"], "named more than once"),
    ],
)
def test_names_are_checked(wanted, told):
    with pytest.raises(ValueError, match=told):
        check_metrics(wanted)


def test_what_is_missing_is_said(toy, real, samples):
    blocks = [(samples, range(20))]
    with pytest.raises(ValueError, match="fd needs an extractor"):
        evaluate_samples(blocks, ASKED, ["fd"])
    with pytest.raises(ValueError, match="fd needs a reference"):
        evaluate_samples(blocks, ASKED, ["fd"], extractor=toy)
    with pytest.raises(ValueError, match="recognised needs a classifier"):
        evaluate_samples(blocks, ASKED, ["recognised"])
    with pytest.raises(ValueError, match="loss is a model's"):
        evaluate_samples(blocks, ASKED, ["loss"])
    without = dataclasses.replace(real, features=None)
    with pytest.raises(ValueError, match="keeps no features"):
        evaluate_samples(blocks, ASKED, ["recall"], extractor=toy, reference=without)
    without = dataclasses.replace(real, spatial=None)
    with pytest.raises(ValueError, match="no spatial statistics"):
        evaluate_samples(blocks, ASKED, ["sfid"], extractor=toy, reference=without)
    assert evaluate_samples(blocks, ASKED, ["is"], extractor=toy).figures["is"] >= 1.0  # needs no reference


def test_too_few_samples_are_noted(toy, grey, real, samples):
    few = evaluate_samples([(samples[:6], range(6))], ASKED[:6], ["fd"], extractor=toy, reference=real)
    assert few.figures["fd"] > 0
    assert few.notes[0].startswith("6 samples for 6 features: the covariance is singular, and fd is far too high")
    enough = evaluate_samples([(samples, range(20))], ASKED, ["fd"], extractor=toy, reference=real)
    assert enough.notes == []
    five = ArrayDataset(grey.images[:5], grey.labels[:5], grey.class_names)
    small = make_reference(five, toy, data="greys", features=5)
    found = evaluate_samples([(samples, range(20))], ASKED, ["fd", "recall"], extractor=toy, reference=small)
    assert [note.partition(":")[0] for note in found.notes] == [
        "5 real images for 6 features",
        "precision and recall of 20 samples against 5 real images",
    ]
    with pytest.raises(ValueError, match="at least 2 samples, found 1"):
        evaluate_samples([(samples[:1], range(1))], ASKED[:1], ["fd"], extractor=toy, reference=real)


def test_other_classes_are_noted(real):
    assert class_note(real.facts, ["c", "b", "a"]) == []
    assert "the reference is of 3 classes, the samples are of 1" in class_note(real.facts, ["a"])[0]
    assert class_note({"classes": None}, ["a"]) == []  # ADM's archives do not say
