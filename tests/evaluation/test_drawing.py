"""Samples block by block: seeded, each block by itself, as many of each class as asked for."""

import pytest
import torch

from kindgene import DiT, sample
from kindgene.evaluation.drawing import Sampling, drawn, even_counts
from kindgene.training.processes import Processes

ASKED = ["a", "b", "c", "a", "b"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    dit = DiT.from_preset("tiny/2", num_classes=3, class_names=("a", "b", "c"))
    torch.nn.init.normal_(dit.final_layer.linear.weight, std=0.3)
    return dit


def all_of(blocks):
    parts = list(blocks)
    assert [number for _, numbers in parts for number in numbers] == list(range(len(ASKED)))
    return torch.cat([images for images, _ in parts])


def test_the_first_block_is_kindgene_sample(model):
    settings = {"guidance": 1.5, "negative": None, "steps": 2, "scheduler": "ddpm", "clip": 1.0}
    found = all_of(drawn(model, ASKED, Sampling(**settings, seed=7)))
    assert torch.equal(found, sample(model, ASKED, generator=torch.Generator().manual_seed(7), **settings))


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_batches_change_rounding_alone(model, scheduler):
    found = [
        all_of(drawn(model, ASKED, Sampling(steps=2, scheduler=scheduler, batch_size=size), block=2)) for size in (1, 5)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_blocks_are_drawn_each_by_itself(model):
    sampling = Sampling(steps=2, seed=3)
    whole, begun = all_of(drawn(model, ASKED, sampling, block=2)), drawn(model, ASKED[:4], sampling, block=2)
    assert torch.equal(torch.cat([images for images, _ in begun]), whole[:4])
    same_class = [images for images, _ in drawn(model, ["a"] * 4, sampling, block=2)]
    assert not torch.equal(*same_class)
    other = all_of(drawn(model, ASKED, Sampling(steps=2, seed=4), block=2))
    assert not torch.isclose(other, whole).flatten(1).all(1).any()


def test_processes_divide_the_blocks(model):
    sampling = Sampling(steps=2, seed=3)
    whole = all_of(drawn(model, ASKED, sampling, block=2))
    shares = [
        list(drawn(model, ASKED, sampling, block=2, processes=Processes(rank, 2, torch.device("cpu"))))
        for rank in (0, 1)
    ]
    assert [[numbers for _, numbers in share] for share in shares] == [[range(0, 2), range(4, 5)], [range(2, 4)]]
    for images, numbers in [*shares[0], *shares[1]]:
        assert torch.equal(images, whole[numbers.start : numbers.stop])


def test_latents_are_decoded_and_progress_is_told(model):
    told = []

    class Watching:
        def start(self, total, done=0):
            told.append(total)

        def update(self, done, **figures):
            told.append(done)

        def close(self):
            told.append("closed")

    parts = drawn(model, ASKED, Sampling(steps=2), block=3, decode=lambda z: z[:, :, :1, :1], progress=Watching())
    assert [images.shape for images, _ in parts] == [(3, 1, 1, 1), (2, 1, 1, 1)]
    assert told == [4, 1, 2, 3, 4, "closed"]


@pytest.mark.parametrize(("count", "counts"), [(7, (3, 2, 2)), (6, (2, 2, 2)), (2, (1, 1, 0))])
def test_samples_are_dealt_evenly(count, counts):
    dealt = even_counts(["a", "b", "c"], count)
    assert dealt == ["a"] * counts[0] + ["b"] * counts[1] + ["c"] * counts[2]


def test_what_was_asked_is_recorded():
    assert Sampling(seed=3, steps=9).to_dict() == {
        "guidance": 1.0,
        "negative": None,
        "steps": 9,
        "scheduler": "ddim",
        "clip": 1.0,
        "seed": 3,
        "batch_size": 256,
    }
