"""The models of the studies at their first step: a dense DiT of given sizes, and one made decomposable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.decomposable import Decomposable
from kindgene.models.dit import DiT
from kindgene.studies.latents import backbone_choices


class Sizes(Protocol):
    """What a study's settings say of its models."""

    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def learngene_rank(self) -> int: ...
    @property
    def tailor_rank(self) -> int: ...


def new_dense(names: Sequence[str], sizes: Sizes, seed: int) -> DiT:
    """A dense DiT for these classes, its weights drawn by the seed; of grey images, unless the sizes are `Latents`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense: DiT = DiT(
            input_size=sizes.image_size,
            patch_size=sizes.patch_size,
            hidden_size=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.heads,
            num_classes=len(names),
            class_names=list(names),
            time_frequencies="diffusers",
            **backbone_choices(sizes),
        )
    return dense


def new_decomposable(names: Sequence[str], sizes: Sizes, seed: int) -> Decomposable:
    """The dense DiT of these sizes made decomposable, adaLN included."""
    kind = KindConfig(
        num_classes=len(names),
        learngene_rank=sizes.learngene_rank,
        tailor_rank=sizes.tailor_rank,
        targets="paper+adaln",
    )
    generator = torch.Generator().manual_seed(seed)
    model: Decomposable = make_decomposable(new_dense(names, sizes, seed), kind, generator=generator)
    return model
