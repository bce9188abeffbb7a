"""The batches of a run are a function of the step, however they are divided, cut and read."""

from dataclasses import replace

import pytest
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.training.batches import Batches, MicroBatch
from kindgene.training.config import TrainConfig
from kindgene.training.placement import Division, EvenDivision, Placement

CONFIG = TrainConfig(steps=6, batch_size=10, label_drop=0.3, seed=4)
CPU = torch.device("cpu")


def dataset() -> ArrayDataset:
    images = torch.linspace(-1, 1, 23 * 4 * 4).reshape(23, 1, 4, 4)
    return ArrayDataset(images, torch.arange(23) % 4, ("a", "b", "c"), flip=True)  # every fourth has no class


def batches(config: TrainConfig = CONFIG, division: Division | None = None, rank: int = 0) -> Batches:
    return Batches(dataset(), config, null_class=3, num_timesteps=100, division=division or EvenDivision(1), rank=rank)


def joined(parts: list[MicroBatch | None]) -> list[torch.Tensor]:
    whole = [part for part in parts if part is not None]
    return [torch.cat([getattr(part, name) for part in whole]) for name in ("images", "noise", "t", "labels")]


@pytest.mark.parametrize("accumulation", [1, 3, 10])
@pytest.mark.parametrize("workers", [0, 2])
def test_read_ahead_or_not_cut_or_not_they_are_the_same(accumulation: int, workers: int) -> None:
    config = replace(CONFIG, gradient_accumulation_steps=accumulation, num_workers=workers)
    parts = list(batches(config).read(2, CPU))
    assert len(parts) == 4 * accumulation
    for mine, plain in zip(joined(parts), joined(list(batches().read(2, CPU))), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("size", [2, 3, 16])
@pytest.mark.parametrize("tailors", [False, True])
def test_the_shares_of_a_step_are_its_batch(size: int, tailors: bool) -> None:
    division: Division = Placement.of(range(3), [8, 8, 7], size) if tailors else EvenDivision(size)
    for step in range(3):
        whole = batches().share(step)
        assert torch.equal(whole.labels, batches().step_labels(step))
        shares = [batches(division=division, rank=rank).share(step) for rank in range(size)]
        working = [share for share in shares if share.weight == 1.0]
        numbers = torch.cat([share.numbers for share in working])
        order = numbers.argsort()
        assert torch.equal(numbers[order], whole.numbers)
        assert torch.equal(torch.cat([share.labels for share in working])[order], whole.labels)
        for share in shares:
            assert share.weight == 1.0 or share.labels.tolist() == [3]  # idle: one sample without class, not counted


def test_labels_are_dropped_alike_and_images_flipped_by_number() -> None:
    made = batches()
    dropped = torch.cat([made.step_labels(step) for step in range(200)])
    plain = torch.cat([batches(replace(CONFIG, label_drop=0.0)).step_labels(step) for step in range(200)])
    assert ((dropped == plain) | (dropped == 3)).all()
    share = float((dropped[plain != 3] == 3).float().mean())
    assert 0.25 < share < 0.35
    part = made[(0, 0)]
    assert part is not None
    rising = (part.images[:, 0, 0, -1] > part.images[:, 0, 0, 0]).tolist()
    assert len(set(rising)) == 2
