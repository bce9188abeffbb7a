"""Who computes and holds what: every sample once, every tailor where its samples are, the load even."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kindgene.training.placement import EVERYONE, EvenDivision, Placement, fill_up

IMAGES = st.lists(st.integers(0, 50), min_size=1, max_size=12)


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, list[int], list[int]]:
    images = draw(IMAGES)
    count = draw(st.integers(1, len(images)))
    # Every tailor serves someone: a class each first, then any.
    tailor_of = [*range(count), *(draw(st.integers(0, count - 1)) for _ in images[count:])]
    return Placement.of(tailor_of, images, draw(st.integers(1, 6))), tailor_of, images


@given(placements(), st.data())
def test_every_sample_is_computed_once_and_by_its_tailors_owner(
    made: tuple[Placement, list[int], list[int]], data: st.DataObject
) -> None:
    placement, tailor_of, images = made
    labels = torch.tensor(data.draw(st.lists(st.integers(0, len(images)), min_size=1, max_size=40)))
    shares = [placement.share(labels, rank) for rank in range(placement.size)]
    assert sorted(torch.cat(shares).tolist()) == list(range(len(labels)))
    for rank, share in enumerate(shares):
        assert share.tolist() == sorted(share.tolist())
        gathered = placement.gathered(labels, labels[share])
        held = set(placement.tailors(rank).tolist())
        named = gathered[gathered < len(images)].tolist()
        assert {tailor_of[label] for label in named} <= held
        # What everyone holds moves everywhere in the same steps.
        common = {label for label in labels.tolist() if label < len(images) and placement.owner[tailor_of[label]] == -1}
        assert common <= set(named)


@given(placements())
def test_a_tailor_has_one_owner_unless_its_classes_have_more_than_their_share(
    made: tuple[Placement, list[int], list[int]],
) -> None:
    placement, tailor_of, images = made
    holders = torch.cat([placement.tailors(rank) for rank in range(placement.size)])
    for tailor in range(max(tailor_of) + 1):
        weight = sum(number for number, own in zip(images, tailor_of, strict=True) if own == tailor)
        heavy = placement.size > 1 and weight * placement.size > sum(images)
        assert (placement.owner[tailor] == EVERYONE) == heavy
        assert (holders == tailor).sum() == (placement.size if heavy else 1)
    classes = torch.cat([placement.classes(rank) for rank in range(placement.size)])
    assert set(classes.tolist()) == set(range(len(images)))


def test_ten_thousand_classes_on_64_processes_are_even() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(50, 1300, (10_000,), generator=generator)
    placement = Placement.of(range(10_000), images.tolist(), 64)
    held = torch.bincount(placement.owner, minlength=64)
    assert held.min() > 0.9 * 10_000 / 64
    assert held.max() < 1.1 * 10_000 / 64
    load = torch.bincount(placement.owner, weights=images.double(), minlength=64)
    assert load.max() < 1.01 * load.mean()


def test_classes_without_images_are_spread_too() -> None:
    placement = Placement.of(range(40), [100] * 4 + [0] * 36, 4)
    assert torch.bincount(placement.owner, minlength=4).tolist() == [10, 10, 10, 10]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 60))
def test_filling_up_makes_the_fullest_as_empty_as_it_can_be(loads: list[int], count: int) -> None:
    taken = fill_up(loads, count)
    assert sum(taken) == count
    even = -(-(sum(loads) + count) // len(loads))
    assert max(load + more for load, more in zip(loads, taken, strict=True)) == max(*loads, even)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_even_division_is_the_batch_in_order(size: int) -> None:
    labels = torch.arange(5)
    division = EvenDivision(size)
    assert torch.cat([division.share(labels, rank) for rank in range(size)]).tolist() == list(range(5))
    assert torch.equal(division.gathered(labels, labels[:1]), labels)
