"""In-memory data sets: what they hold, how they are divided, what they refuse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kindgene.data.arrays import ArrayDataset, in_memory

NAMES = ("ant", "bee", "cat")


def numbered(labels: list[int], names: tuple[str, ...] = NAMES) -> ArrayDataset:
    """A data set whose image i holds nothing but the value i / 1000, so that images can be told apart."""
    values = torch.arange(len(labels), dtype=torch.float32) / 1000
    return ArrayDataset(values.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), torch.tensor(labels), names)


def identities(dataset: ArrayDataset) -> list[int]:
    return (dataset.images[:, 0, 0, 0] * 1000).round().long().tolist()


LABELS = st.lists(st.integers(0, 2), min_size=20, max_size=60).filter(
    lambda labels: min(map(labels.count, range(3))) > 1
)


def test_batch_gives_the_images_asked_for() -> None:
    dataset = numbered([0, 1, 2, 0])
    assert len(dataset) == 4
    batch = dataset.batch(torch.tensor([3, 1, 3]))
    assert batch.shape == (3, 1, 2, 2)
    assert torch.equal(batch, dataset.images[[3, 1, 3]])
    assert dataset.batch(torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 2, 2)


def test_counts_name_every_class() -> None:
    assert numbered([0, 0, 2]).counts() == {"ant": 2, "bee": 0, "cat": 1}


def test_subset_renumbers_in_the_order_asked() -> None:
    chosen = numbered([0, 1, 2, 0, 2]).subset(["cat", "ant"])
    assert chosen.class_names == ("cat", "ant")
    assert chosen.labels.tolist() == [1, 0, 1, 0]
    assert identities(chosen) == [0, 2, 3, 4]


@given(labels=LABELS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**64 - 1))
def test_split_divides_each_class(labels: list[int], fraction: float, seed: int) -> None:
    dataset = numbered(labels)
    train, held_out = dataset.split(fraction, seed)
    assert sorted(identities(train) + identities(held_out)) == list(range(len(labels)))
    assert train.class_names == held_out.class_names == NAMES
    for name, total in dataset.counts().items():
        held = held_out.counts()[name]
        assert 1 <= held <= total - 1
        assert abs(held - total * fraction) <= 1
    for part in (train, held_out):
        assert [labels[image] for image in identities(part)] == part.labels.tolist()


@given(labels=LABELS, seed=st.integers(0, 2**64 - 1), names=st.permutations(NAMES), count=st.integers(1, 3))
def test_split_and_subset_commute(labels: list[int], seed: int, names: list[str], count: int) -> None:
    dataset = numbered(labels)
    asked = names[:count]
    for split_first, subset_first in zip(dataset.split(0.3, seed), dataset.subset(asked).split(0.3, seed), strict=True):
        assert identities(split_first.subset(asked)) == identities(subset_first)


def test_split_follows_the_seed() -> None:
    dataset = numbered([0, 1, 2] * 20)
    held_out = [identities(dataset.split(0.5, seed)[1]) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]


def test_split_is_pinned() -> None:
    """A change here changes which images every past run held out."""
    assert identities(numbered([0, 1, 2] * 8).split(0.25, 3)[1]) == [0, 1, 3, 13, 14, 17]


def test_images_without_class() -> None:
    """They belong to no class: not counted, not in a subset, never held out."""
    dataset = numbered([3, 0, 3, 1, 0, 1], NAMES)
    assert dataset.counts() == {"ant": 2, "bee": 2, "cat": 0}
    assert identities(dataset.subset(["bee"])) == [3, 5]
    two = numbered([2, 0, 2, 1, 0, 1], NAMES[:2])
    train, held_out = two.split(0.5, 0)
    assert train.labels.tolist().count(2) == 2
    assert sorted(held_out.labels.tolist()) == [0, 1]
    assert sorted(identities(train) + identities(held_out)) == list(range(6))


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_counts_and_those_without_class_are_all(labels: list[int]) -> None:
    dataset = numbered(labels)
    assert sum(dataset.counts().values()) + labels.count(3) == len(dataset)
    assert list(dataset.counts()) == list(NAMES)


SIDES = torch.arange(64 * 4, dtype=torch.float32).reshape(64, 1, 2, 2) / 256  # no image is its own mirror image


@given(seed=st.integers(0, 2**32), start=st.integers(0, 2**40), order=st.permutations(range(12)))
def test_a_flip_follows_the_seed_and_the_samples_number_alone(seed: int, start: int, order: list[int]) -> None:
    dataset = ArrayDataset(SIDES, torch.arange(64) % 3, NAMES, flip=True)
    numbers, indices = start + torch.arange(12), torch.arange(12) * 5
    drawn = dataset.sample(indices, numbers, seed)
    for place in order:
        alone = dataset.sample(indices[place : place + 1], numbers[place : place + 1], seed)
        assert torch.equal(alone[0], drawn[place])
        mirrored = not torch.equal(drawn[place], SIDES[indices[place]])
        assert torch.equal(drawn[place], SIDES[indices[place]].flip(-1) if mirrored else SIDES[indices[place]])
        other = dataset.sample(torch.tensor([63]), numbers[place : place + 1], seed)[0]
        assert torch.equal(other, SIDES[63].flip(-1)) == mirrored  # whichever image it is


def test_half_of_all_samples_are_flipped_and_none_unless_asked() -> None:
    dataset = ArrayDataset(SIDES, torch.arange(64) % 3, NAMES, flip=True)
    indices = torch.arange(4096) % 64
    drawn = dataset.sample(indices, torch.arange(4096), 0)
    assert 1900 < (drawn != SIDES[indices]).any(-1).any(-1).any(-1).sum() < 2200
    assert not torch.equal(drawn, dataset.sample(indices, torch.arange(4096), 1))
    plain = ArrayDataset(SIDES, torch.arange(64) % 3, NAMES)
    assert torch.equal(plain.sample(indices, torch.arange(4096), 0), SIDES[indices])
    assert dataset.subset(["ant"]).flip
    assert dataset.split(0.5, 0)[0].flip


def test_a_fingerprint_tells_data_apart() -> None:
    dataset = numbered([0, 1, 2, 3])
    same, darker = numbered([0, 1, 2, 3]), numbered([0, 1, 2, 3])
    darker.images[2] -= 0.5
    assert dataset.fingerprint() == same.fingerprint()
    others = [numbered([0, 1, 2, 2]), numbered([0, 1, 2, 3], ("ant", "bee", "cow")), darker, numbered([0, 1, 2])]
    assert all(other.fingerprint() != dataset.fingerprint() for other in others)
    assert dataset.fingerprint()["images"] == 4


def test_what_is_in_memory_stays_as_it_is() -> None:
    dataset = numbered([0, 1, 2])
    assert in_memory(dataset) is dataset


IMAGES = torch.zeros(3, 1, 2, 2)
FINE = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES.double(), FINE, NAMES, "float64"),
        (IMAGES[0], FINE, NAMES, r"shape \(1, 2, 2\)"),
        (IMAGES[:0], FINE[:0], NAMES, "hold nothing"),
        (IMAGES + 1.01, FINE, NAMES, "from 1.01 to 1.01"),
        (IMAGES - 1.01, FINE, NAMES, "from -1.01"),
        (IMAGES / 0, FINE, NAMES, "nan"),
        (IMAGES, FINE.int(), NAMES, "int32"),
        (IMAGES, FINE[:2], NAMES, r"shape \(2,\).*\(3,\)"),
        (IMAGES, FINE[None], NAMES, r"shape \(1, 3\)"),
        (IMAGES, FINE + 1, NAMES[:2], "from 1 to 3.*0 to 1, or be 2 for an image without class"),
        (IMAGES, FINE - 1, NAMES, "from -1 to 1"),
        (IMAGES, FINE, (), "no class names"),
        (IMAGES, FINE, ("ant", "bee", ""), "non-empty"),
        (IMAGES, FINE, ("ant", "bee", 3), "non-empty strings"),
        (IMAGES, FINE, ("ant", "bee", "ant"), "'ant' is named more than once"),
    ],
)
def test_unfit_contents_are_refused(
    images: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(images, labels, names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog"], "unknown class 'dog'; the data set has 'ant', 'bee', 'cat'"),
        (["ant", "ant"], "more than once"),
        ([], "no class names"),
        (["bee"], "no images of class 'bee'"),
        ("cat", r"single string 'cat'"),
    ],
)
def test_unfit_subsets_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbered([0, 2]).subset(names)


def test_unfit_splits_are_refused() -> None:
    dataset = numbered([0, 0, 1, 1, 2, 2])
    for fraction in (0.0, 1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="held-out fraction"):
            dataset.split(fraction, 0)
    with pytest.raises(ValueError, match="the seed is -1"):
        dataset.split(0.5, -1)
    with pytest.raises(ValueError, match="class 'cat' has 1 images"):
        numbered([0, 0, 1, 1, 2]).split(0.5, 0)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([0, 3]), "from 0 to 3, but the data set has the images 0 to 2"),
        (torch.tensor([-1]), "from -1"),
        (torch.tensor([0.0]), "float32"),
        (torch.tensor([[0]]), r"\(1, 1\)"),
        (torch.tensor([True, False, True]), "bool"),
    ],
)
def test_unfit_indices_are_refused(indices: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbered([0, 1, 2]).batch(indices)
