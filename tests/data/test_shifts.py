"""The shift sets: what an image depends on, that classes can be told apart, that they are far from glyphs."""

from pathlib import Path

import numpy as np
import pytest
import torch

import kindgene
from kindgene.data.arrays import ArrayDataset
from kindgene.data.canvas import Dice, Painter, cloud, edge, paint, smooth_noise, turned
from kindgene.data.digits import load_digits
from kindgene.data.glyphs import SPLITS, load_glyphs
from kindgene.data.shifts import SHIFTS, load_shift
from kindgene.evaluation.classifier import train_classifier

CLASSES = {"digits": 10, "phantoms": 6, "stars": 6, "textures": 9}


@pytest.fixture(scope="module")
def trained() -> dict[str, ArrayDataset]:
    """Forty training images a class of every set."""
    return {name: load_shift(name, "train", per_class=40) for name in SHIFTS}


@pytest.mark.parametrize("name", SHIFTS)
@pytest.mark.parametrize("size", [16, 32])
def test_shape_and_range(name: str, size: int) -> None:
    dataset = kindgene.load_shift(name, "validation", size, per_class=4)
    assert len(dataset.class_names) == CLASSES[name]
    assert dataset.images.shape == (4 * CLASSES[name], 1, size, size)
    assert dataset.counts() == dict.fromkeys(dataset.class_names, 4)
    assert dataset.images.amin() < -0.5
    assert dataset.images.amax() > 0.5
    assert dataset.images.std(dim=(1, 2, 3)).min() > 0.02  # nothing is blank


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_does_not_depend_on_the_others(name: str, trained: dict[str, ArrayDataset]) -> None:
    few, many = load_shift(name, "train", per_class=3), trained[name]
    for label in range(CLASSES[name]):
        assert torch.equal(few.images[few.labels == label], many.images[many.labels == label][:3])


@pytest.mark.parametrize("name", SHIFTS)
def test_splits_never_overlap(name: str) -> None:
    per_class = None if name == "digits" else 15
    parts = [load_shift(name, split, per_class=per_class) for split in SPLITS]
    images = [image.numpy().tobytes() for part in parts for image in part.images]
    assert len(set(images)) == len(images)
    if name == "digits":
        assert len(images) == 1797


@pytest.mark.parametrize("name", SHIFTS)
def test_seeds_differ(name: str) -> None:
    one, other = (load_shift(name, "test", per_class=8, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.images, other.images)
    assert torch.equal(one.images, load_shift(name, "test", per_class=8, seed=0).images)


@pytest.mark.parametrize(("name", "least"), [("digits", 0.9), ("phantoms", 0.8), ("stars", 0.9), ("textures", 0.9)])
def test_a_classifier_tells_the_classes_apart(name: str, least: float, trained: dict[str, ArrayDataset]) -> None:
    assert train_classifier(trained[name], load_shift(name, "test", per_class=20), seed=0).accuracy > least


def test_every_set_is_far_from_glyphs(tmp_path: Path, trained: dict[str, ArrayDataset]) -> None:
    """A classifier tells, for nearly every image held out, which of the five sets it is of."""
    glyphs = load_glyphs("train", per_class=2, cache=tmp_path)
    held_glyphs = load_glyphs("test", per_class=1, cache=tmp_path)
    held = {name: load_shift(name, "test", per_class=10) for name in SHIFTS}
    accuracy = train_classifier(joined(glyphs, trained), joined(held_glyphs, held), seed=0).accuracy
    assert accuracy > 0.95


def joined(glyphs: ArrayDataset, shifts: dict[str, ArrayDataset]) -> ArrayDataset:
    """One data set whose classes are the sets."""
    sets = {"glyphs": glyphs, **shifts}
    labels = [torch.full((len(part),), label) for label, part in enumerate(sets.values())]
    return ArrayDataset(torch.cat([part.images for part in sets.values()]), torch.cat(labels), tuple(sets))


def test_the_digits_are_the_real_ones() -> None:
    """Averaged back to 8x8 pixels, each lies close to one of the 1,797, of the same class."""
    large = load_shift("digits", "test", 32)
    small = torch.nn.functional.avg_pool2d(large.images, 4).flatten(1)
    real = load_digits()
    apart = torch.cdist(small, real.images.flatten(1)) / 8.0  # root mean square over the 64 pixels
    nearest, which = apart.min(dim=1)
    assert nearest.max() < 0.2
    assert torch.equal(real.labels[which], large.labels)
    assert len(which.unique()) == len(large)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("star", {}, "no shift set 'star'; did you mean 'stars'"),
        ("xyz", {}, "did you mean 'digits' or 'phantoms' or 'stars' or 'textures'"),
        ("stars", {"split": "dev"}, "the split is 'train', 'validation' or 'test', got 'dev'"),
        ("stars", {"size": 8}, "16 or 32 pixels a side, not 8"),
        ("stars", {"per_class": 0}, "0 images a class"),
        ("stars", {"seed": 2**64}, "the seed is 18446744073709551616"),
        ("digits", {"per_class": 37}, "37 images a class were asked for; validation has 3[0-9] of digit '0'"),
    ],
)
def test_unfit_requests_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_shift(name, **{"split": "validation", "per_class": 2, **options})
    assert "\n" not in str(caught.value)


def test_painting_averages_the_fine_grid() -> None:
    """The left half bright: at any size half of the columns; out of range is cut off."""
    half = Painter(lambda u_NP: np.where(np.arange(64) < 32, 7.0, -7.0) * np.ones((len(u_NP), 64, 1)), 1)
    for size in (16, 32):
        images = paint(half, size, 0, "half", 3)
        assert images.shape == (3, size, size)
        assert (images[:, :, : size // 2] == 255).all()
        assert (images[:, :, size // 2 :] == 0).all()


def test_painting_does_not_depend_on_how_many() -> None:
    """Also where the images take several rounds."""
    level = Painter(lambda u_NP: u_NP[:, :, None] * np.ones((1, 64, 64)), 1)
    many = paint(level, 16, 3, "level", 150)
    assert np.array_equal(paint(level, 16, 3, "level", 70), many[:70])
    assert len(np.unique(many)) > 80


def test_shapes_lie_where_they_should() -> None:
    assert edge(np.array([-1.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 1.0]
    x, y = turned(np.array(1.0), np.array(0.0), np.array(np.pi / 2))
    assert (float(x), float(y)) == (pytest.approx(0.0, abs=1e-12), pytest.approx(-1.0))
    corner = np.zeros((1, 3, 3))
    corner[0, 0, 2] = 1.0  # top right
    noise = smooth_noise(corner)[0]
    assert noise.shape == (64, 64)
    assert np.unravel_index(noise.argmax(), noise.shape) == (0, 63)
    assert noise[:, :32].max() == 0.0


def test_dice_run_out_loudly() -> None:
    dice = Dice(np.full((2, 5), 0.5))
    assert dice.span(2.0, 4.0).tolist() == [[[3.0]], [[3.0]]]
    assert dice.whole(1, 3).ravel().tolist() == [2.0, 2.0]
    assert dice.sign().ravel().tolist() == [1.0, 1.0]
    with pytest.raises(IndexError, match="more than its 5"):
        cloud(dice)
