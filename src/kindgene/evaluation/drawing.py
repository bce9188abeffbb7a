"""Samples to be measured, in any number: drawn a block at a time, so that 50,000 of them never lie in memory.

Block k of 1,000 samples has a generator of its own, seeded by (seed, k); that of the first is seeded by the seed, as
in ``kindgene sample``. So samples do not depend on the batch size but by rounding, and blocks can be drawn in any
order, by any process.

Shapes: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kindgene.diffusion import sampler
from kindgene.progress import NoProgress, Progress
from kindgene.training.processes import ALONE, Processes

BLOCK = 1_000


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn: the settings of `kindgene.sample`, and the seed."""

    guidance: float = 1.0
    negative: str | None = None
    steps: int = 50
    scheduler: str = "ddim"
    clip: float | None = 1.0
    seed: int = 0
    batch_size: int = 256

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def drawn(
    model: Any,
    asked: Sequence[str],
    sampling: Sampling,
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
    processes: Processes = ALONE,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, range]]:
    """Samples of the classes asked for, block by block: (images [N, C, H, W], their numbers in `asked`).

    Of several `processes` each draws every so many-th block. `decode` makes images of latents. `progress` hears of
    sampling steps, of all this process's blocks together.
    """
    blocks = [range(first, min(first + block, len(asked))) for first in range(0, len(asked), block)]
    mine = list(enumerate(blocks))[processes.rank :: processes.size]
    progress = NoProgress() if progress is None else progress
    progress.start(len(mine) * sampling.steps)
    for done_blocks, (number, part) in enumerate(mine):
        before = done_blocks * sampling.steps

        def told(done: int, of: int, before: int = before) -> None:
            progress.update(before + done)

        images = sampler.sample(
            model,
            asked[part.start : part.stop],
            guidance=sampling.guidance,
            negative=sampling.negative,
            steps=sampling.steps,
            scheduler=sampling.scheduler,
            clip=sampling.clip,
            generator=torch.Generator().manual_seed(_block_seed(sampling.seed, number)),
            batch_size=sampling.batch_size,
            progress=told,
        )
        yield images if decode is None else decode(images), part
    progress.close()


def even_counts(names: Sequence[str], count: int) -> list[str]:
    """`count` samples dealt evenly over the classes, class by class; the first ones get what is left over."""
    each, over = divmod(count, len(names))
    return [name for place, name in enumerate(names) for _ in range(each + (place < over))]


def _block_seed(seed: int, number: int) -> int:
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big")
