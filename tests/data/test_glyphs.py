"""Glyphs: what an image depends on, how it looks, how fast it comes, what is refused."""

import time
from pathlib import Path

import pytest
import torch

import kindgene
from kindgene.data.arrays import ArrayDataset
from kindgene.data.digits import load_digits
from kindgene.data.glyphs import PER_CLASS, SPLITS, load_glyphs, render_glyphs
from kindgene.data.superclasses import names, superclasses
from kindgene.evaluation.classifier import train_classifier

FEW = ["K", "a", "comma", "cyrillic capital letter zhe"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of this file share."""
    return tmp_path_factory.mktemp("glyphs")


def of(dataset: ArrayDataset, name: str) -> torch.Tensor:
    return dataset.images[dataset.labels == dataset.class_names.index(name)]


@pytest.mark.parametrize("size", [16, 32])
def test_shape_range_and_polarity(folder: Path, size: int) -> None:
    """Ink is bright on dark, as in the real digits: the edge is dark, a part of the image bright."""
    glyphs = load_glyphs("train", FEW, size, per_class=50, cache=folder)
    assert glyphs.images.shape == (200, 1, size, size)
    assert glyphs.class_names == tuple(FEW)
    assert glyphs.counts() == dict.fromkeys(FEW, 50)
    assert (glyphs.images.min(), glyphs.images.max()) == (-1.0, 1.0)
    for dataset in (glyphs, load_digits()):
        assert -0.95 < dataset.images.mean() < -0.2
        assert dataset.images[:, :, :, 0].mean() < -0.9
    assert glyphs.images.amax(dim=(1, 2, 3)).min() > 0.0


def test_base_and_novel_have_all_their_classes(folder: Path) -> None:
    base = load_glyphs("validation", per_class=1, cache=folder)
    novel = load_glyphs("validation", "novel", per_class=1, cache=folder)
    assert base.class_names == names("base")
    assert novel.class_names == names("novel")
    assert (len(base), len(novel)) == (150, 461)
    assert novel.images.amax(dim=(1, 2, 3)).min() > -0.5  # no image is blank


def test_each_split_has_its_own_number(folder: Path) -> None:
    assert {split: len(load_glyphs(split, ["K"], cache=folder)) for split in SPLITS} == PER_CLASS


def test_an_image_does_not_depend_on_the_others(folder: Path) -> None:
    whole = load_glyphs("train", FEW, per_class=30, cache=folder)
    part = load_glyphs("train", ["comma", "K"], per_class=7, cache=folder)
    for name in part.class_names:
        assert torch.equal(of(part, name), of(whole, name)[:7])


def test_splits_and_seeds_never_overlap(folder: Path) -> None:
    parts = [load_glyphs(split, FEW, per_class=100, cache=folder) for split in SPLITS]
    parts.append(load_glyphs("train", FEW, per_class=100, seed=1, cache=folder))
    images = [image.numpy().tobytes() for part in parts for image in part.images]
    assert len(set(images)) == len(images) == 1600


def test_images_vary_in_face_size_shift_and_rotation(folder: Path) -> None:
    """A class of two members in twelve faces: lit rows and columns begin and end at many places."""
    images = of(load_glyphs("train", ["cyrillic capital letter de"], 32, per_class=200, cache=folder), FIRST)
    lit = images[:, 0] > 0
    tops, lefts = lit.any(2).int().argmax(1), lit.any(1).int().argmax(1)
    heights = lit.any(2).sum(1)
    assert len(tops.unique()) >= 6
    assert len(lefts.unique()) >= 8
    assert heights.max() - heights.min() >= 6
    assert int(heights.max()) <= 30  # whole, with room around


FIRST = "cyrillic capital letter de"


def test_the_cache_is_used_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    first = load_glyphs("test", ["K"], per_class=5, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("glyphs-test-16-")
    written = file.stat().st_mtime_ns
    assert torch.equal(load_glyphs("test", ["K"], per_class=5, cache=tmp_path).images, first.images)
    assert file.stat().st_mtime_ns == written
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    assert torch.equal(load_glyphs("test", ["K"], per_class=5, cache=tmp_path).images, first.images)
    assert file.read_bytes() == whole


def test_whatever_matters_has_a_cache_of_its_own(tmp_path: Path) -> None:
    for options in ({}, {"seed": 1}, {"per_class": 2}, {"size": 32}, {"split": "train"}, {"classes": ["a"]}):
        load_glyphs(**{"split": "test", "classes": ["K"], "per_class": 1, "cache": tmp_path, **options})
    assert len(list(tmp_path.iterdir())) == 6


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kindgene.load_glyphs("test", ["K"], per_class=1)
    assert len(list((tmp_path / "kindgene").iterdir())) == 1


def test_rendering_is_fast() -> None:
    """More than 10,000 a second on one core of 2024; the bound leaves room for a slow, busy one."""
    chosen = [superclass for superclass in superclasses() if superclass.group == "base"][:30]
    started = time.process_time()
    images = render_glyphs(chosen, "train", 16, 100, seed=5)
    assert len(images) / (time.process_time() - started) > 1000


def test_a_classifier_knows_held_out_glyphs(folder: Path) -> None:
    """Ten plain letters: the classes can be told apart, and what is learned carries over to the other split."""
    letters = ["a", "b", "d", "e", "f", "k", "n", "Y", "Z", "9"]
    train = load_glyphs("train", letters, per_class=100, cache=folder)
    test = load_glyphs("test", letters, per_class=50, cache=folder)
    assert train_classifier(train, test, seed=0).accuracy > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "the split is 'train', 'validation' or 'test', got 'tset'"),
        ({"size": 28}, "16 or 32 pixels a side, not 28"),
        ({"per_class": 0}, "0 images a class"),
        ({"seed": -1}, "the seed is -1"),
        ({"classes": "A"}, "'base', 'novel' or a list of names, got 'A'"),
        ({"classes": []}, "no class was named"),
        ({"classes": ["K", "K"]}, "glyph class 'K' is named more than once"),
        ({"classes": ["Comma"]}, "no glyph class 'Comma'; nearest: 'comma'"),
        ({"classes": ["é"]}, "no glyph class 'é'; nearest: "),
    ],
)
def test_unfit_requests_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_glyphs(**{"split": "test", "classes": ["K"], "per_class": 1, "cache": tmp_path, **options})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
