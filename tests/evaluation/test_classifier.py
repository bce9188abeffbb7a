"""The judge of samples is itself good, fair and strict about its input."""

import numpy as np
import pytest
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.data.digits import load_digits
from kindgene.evaluation.classifier import Classifier, recognised, train_classifier


@pytest.fixture(scope="module")
def parts() -> tuple[ArrayDataset, ArrayDataset]:
    return load_digits().split(0.2, seed=0)


@pytest.fixture(scope="module")
def judge(parts: tuple[ArrayDataset, ArrayDataset]) -> Classifier:
    return train_classifier(*parts, seed=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_are_told_apart(seed: int) -> None:
    train, held_out = load_digits().split(0.2, seed)
    judge = train_classifier(train, held_out, seed)
    assert judge.accuracy >= 0.98
    assert (judge.train_count, judge.held_out_count) == (len(train), len(held_out))
    assert judge.class_names == tuple("0123456789")


def test_accuracy_is_that_of_the_predictions(parts: tuple[ArrayDataset, ArrayDataset], judge: Classifier) -> None:
    held_out = parts[1]
    predicted = judge.predict(held_out.images)
    assert predicted.dtype == torch.int64
    assert judge.accuracy == pytest.approx((predicted == held_out.labels).double().mean().item())


def test_noise_labels_give_chance(parts: tuple[ArrayDataset, ArrayDataset]) -> None:
    """The accuracy is measured on what was held out: with labels that mean nothing it falls to chance."""
    train, held_out = parts
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    unrelated = ArrayDataset(train.images, train.labels[shuffled], train.class_names)
    assert train_classifier(unrelated, held_out, seed=0).accuracy < 0.3


def test_recognised_counts_what_was_asked(parts: tuple[ArrayDataset, ArrayDataset], judge: Classifier) -> None:
    held_out = parts[1]
    names = [held_out.class_names[label] for label in held_out.labels.tolist()]
    right = recognised(judge, held_out.images, names)
    assert right.share == pytest.approx(judge.accuracy)
    assert right.count == len(held_out)
    assert set(right.per_class) == set(held_out.class_names)
    wrong = recognised(judge, held_out.images, [str((int(name) + 1) % 10) for name in names])
    assert wrong.share < 0.02


def test_recognised_per_class(judge: Classifier, parts: tuple[ArrayDataset, ArrayDataset]) -> None:
    """Three images that are surely met, asked for as: rightly, rightly, wrongly."""
    train = parts[0]
    images = torch.cat([train.subset([name]).images[:1] for name in ("3", "1", "0")])
    result = recognised(judge, images, ["3", "1", "1"])
    assert result.per_class == {"3": 1.0, "1": 0.5}
    assert result.share == pytest.approx(2 / 3)
    assert list(result.per_class) == ["3", "1"]


def test_values_out_of_range_are_clipped(judge: Classifier, parts: tuple[ArrayDataset, ArrayDataset]) -> None:
    bright = parts[1].images * 3
    assert torch.equal(judge.predict(bright), judge.predict(bright.clamp(-1, 1)))


def test_other_float_types_and_gradients(judge: Classifier, parts: tuple[ArrayDataset, ArrayDataset]) -> None:
    images = parts[1].images[:32]
    expected = judge.predict(images)
    assert torch.equal(judge.predict(images.bfloat16()), expected)  # sixteenths are exact in bfloat16
    assert torch.equal(judge.predict(images.double().requires_grad_()), expected)
    assert judge.predict(images[:0]).shape == (0,)


@pytest.mark.parametrize("shape", [(3, 40, 24), (1, 17, 8), (1, 8, 64)])
def test_large_images_are_pooled(shape: tuple[int, int, int]) -> None:
    """Two classes that differ in brightness only, at sizes above and beside 16."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, *shape, generator=generator) * 0.5
    labels = torch.arange(60) % 2
    images[labels == 1] -= 0.5
    dataset = ArrayDataset(images, labels, ("bright", "dark"))
    judge = train_classifier(*dataset.split(0.5, seed=0), seed=0)
    assert judge.accuracy == 1.0
    assert judge.image_shape == shape
    assert judge.machine.n_features_in_ == shape[0] * min(shape[1], 16) * min(shape[2], 16)


def test_training_is_bounded_and_seeded(parts: tuple[ArrayDataset, ArrayDataset]) -> None:
    train, held_out = parts
    judges = [train_classifier(train, held_out, seed, max_images=100) for seed in (0, 0, 1)]
    assert all(95 <= judge.train_count <= 105 for judge in judges)
    support = [judge.machine.support_vectors_ for judge in judges]
    assert np.array_equal(support[0], support[1])
    assert not np.array_equal(support[0], support[2])
    assert judges[0].accuracy > 0.8


def test_unfit_training_sets_are_refused(parts: tuple[ArrayDataset, ArrayDataset]) -> None:
    train, held_out = parts
    with pytest.raises(ValueError, match="the classes differ"):
        train_classifier(train, held_out.subset(["1", "2"]), seed=0)
    with pytest.raises(ValueError, match="only one class, '4'"):
        train_classifier(train.subset(["4"]), held_out.subset(["4"]), seed=0)
    wide = ArrayDataset(held_out.images.repeat(1, 1, 1, 2), held_out.labels, held_out.class_names)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\) to train on, \(1, 8, 16\) held out"):
        train_classifier(train, wide, seed=0)
    few = ArrayDataset(train.images[:1], train.labels[:1], train.class_names)
    with pytest.raises(ValueError, match="no training images of class"):
        train_classifier(few, held_out, seed=0)
    with pytest.raises(ValueError, match="max_images is 3"):
        train_classifier(train, held_out, seed=0, max_images=3)


def test_unfit_images_are_refused(judge: Classifier) -> None:
    with pytest.raises(ValueError, match=r"trained on \[N, 1, 8, 8\]"):
        judge.predict(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r"shape \(8, 8\)"):
        judge.predict(torch.zeros(8, 8))
    with pytest.raises(ValueError, match="not finite"):
        judge.predict(torch.full((1, 1, 8, 8), float("nan")))


@pytest.mark.parametrize(
    ("count", "names", "message"),
    [
        (2, ["1"], "2 images and 1 names"),
        (0, [], "at least one"),
        (2, ["1", "ten"], "unknown class 'ten'"),
    ],
)
def test_unfit_questions_are_refused(judge: Classifier, count: int, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recognised(judge, torch.zeros(count, 1, 8, 8), names)
