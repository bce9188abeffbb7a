"""The models and batches that are measured: a DiT's shapes with two blocks, dense and decomposable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.models.dit import DiT
from kindgene.models.presets import find_preset

DEPTH = 2
WEIGHT_SEED, BATCH_SEED = 0, 1


@dataclass(frozen=True)
class Shape:
    """A preset, ranks and the batch that it is measured with. The ranks are those of 150 classes at full rank."""

    preset: str
    learngene_rank: int
    tailor_rank: int
    batch: int


SHAPES = (Shape("DiT-B/4", 168, 4, 32), Shape("DiT-S/4", 84, 2, 32), Shape("DiT-B/2", 168, 4, 8))
TINY = Shape("tiny/2", 8, 2, 2)
"""For tests of the machinery."""


def dense_model(shape: Shape, classes: int, seed: int = WEIGHT_SEED, depth: int = DEPTH) -> DiT:
    """A dense DiT without zero weights, which a fresh one has and which might be faster."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        names = [f"class {number}" for number in range(classes)]
        dense: DiT = DiT.from_preset(shape.preset, num_classes=classes, depth=depth, class_names=names)
        fill_zeros(dense)
    return dense


def decomposable_model(
    shape: Shape, classes: int, seed: int = WEIGHT_SEED, tailor_rank: int | None = None, depth: int = DEPTH
) -> Decomposable:
    """The decomposable model of these shapes; targets: all of the paper's, and the adaLN."""
    kind = KindConfig(
        num_classes=classes,
        learngene_rank=shape.learngene_rank,
        tailor_rank=shape.tailor_rank if tailor_rank is None else tailor_rank,
        targets="paper+adaln",
        init="random",
    )
    return make_decomposable(dense_model(shape, classes, seed, depth), kind, torch.Generator().manual_seed(seed))


@torch.no_grad()
def fill_zeros(module: torch.nn.Module) -> None:
    """Makes parameters that are zero everywhere small random numbers."""
    for value in module.parameters():
        if value.requires_grad and not value.any():
            value.normal_(0.0, 0.02)


def batch_of(shape: Shape, classes: int, seed: int = BATCH_SEED, null_share: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Images, times and labels of one batch; every tenth label is null."""
    generator = torch.Generator().manual_seed(seed)
    data = find_preset(shape.preset).data
    size = data["input_size"]
    x = torch.randn(shape.batch, data["in_channels"], size, size, generator=generator)
    t = torch.randint(0, 1000, (shape.batch,), generator=generator)
    y = torch.randint(0, classes, (shape.batch,), generator=generator)
    y[null_share - 1 :: null_share] = classes
    return x, t, y
