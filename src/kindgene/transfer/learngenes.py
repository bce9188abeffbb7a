"""Earlier learngenes, whole blocks of a pre-trained model, on DiT: Heur-LG and Auto-LG.

Heur-LG (Wang et al., AAAI 2022, arXiv 2106.06788) takes layers by a rule, the last ones; Auto-LG (Wang et al., arXiv
2305.02279) takes those that agree most with a pseudo descendant. Both stack freshly initialised layers to them and
train all of it on the new task. For DiT there is no public code: **what is here is ours, after their ideas**. The
learngene is a number of DiT blocks, which stay at their places in the new model; embedders, the other blocks and the
final layer are fresh. The measure of Auto-LG is ours too: the first step of the pseudo descendant alone, see
`change_asked_for`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from kindgene.models.dit import DiT
from kindgene.transfer.dense import LABEL_DROP
from kindgene.transfer.new_classes import for_new_classes, unfilled
from kindgene.transfer.transfer import Transfer, drawing

Loss = Callable[[nn.Module], Tensor]
"""The training loss, a scalar, of a model of the new classes on some of the new data."""


def usual_blocks(dense: DiT) -> int:
    """How many blocks are the learngene unless told otherwise: half of them, rounded up (ours)."""
    return (len(dense.blocks) + 1) // 2


def heuristic_learngene(
    dense: DiT,
    class_names: Sequence[str],
    blocks: int | None = None,
    label_drop: float = LABEL_DROP,
    *,
    generator: torch.Generator | None = None,
) -> Transfer:
    """Heur-LG on DiT (ours): the last `blocks` blocks are pre-trained, the rest is fresh, all is trained."""
    count = _count(dense, blocks)
    last = range(len(dense.blocks) - count, len(dense.blocks))
    model = _descendant(dense, class_names, last, generator)
    return Transfer("heur_lg", model, label_drop, blocks=tuple(last))


def automatic_learngene(
    dense: DiT,
    class_names: Sequence[str],
    loss: Loss,
    blocks: int | None = None,
    label_drop: float = LABEL_DROP,
    *,
    generator: torch.Generator | None = None,
) -> Transfer:
    """Auto-LG on DiT (ours): the `blocks` blocks that the new data asks to change least are pre-trained; see above."""
    chosen = least_changed(change_asked_for(dense, class_names, loss), _count(dense, blocks))
    model = _descendant(dense, class_names, chosen, generator)
    return Transfer("auto_lg", model, label_drop, blocks=tuple(chosen))


def change_asked_for(dense: DiT, class_names: Sequence[str], loss: Loss) -> list[float]:
    """How much the new data asks each block to change: |gradient| / |weights| over all of its parameters.

    The gradient is that of `loss` at the pre-trained weights, new label rows at the null row. A block that is asked for
    little holds what old and new task have in common. `dense` is not changed.
    """
    model = for_new_classes(dense, class_names)
    with torch.enable_grad():
        loss(model).backward()
    asked = []
    for block in model.blocks:
        parameters = list(block.parameters())
        gradients = [value.grad for value in parameters if value.grad is not None]
        asked.append(_norm(gradients) / max(_norm(parameters), torch.finfo(torch.float32).tiny))
    return asked


def least_changed(asked: Sequence[float], count: int) -> list[int]:
    """The `count` blocks that are asked for least, ascending; of equals the later ones, as Heur-LG would."""
    ranked = sorted(range(len(asked)), key=lambda block: (asked[block], -block))
    return sorted(ranked[:count])


def _descendant(
    dense: DiT, class_names: Sequence[str], inherited: Collection[int], generator: torch.Generator | None
) -> DiT:
    """A fresh DiT for the new classes with these blocks of `dense`."""
    with drawing(generator):
        model = unfilled(dense, class_names)
    for block in inherited:
        model.blocks[block].load_state_dict(dense.blocks[block].state_dict(), strict=True)
    return model


def _count(dense: DiT, blocks: int | None) -> int:
    depth = len(dense.blocks)
    count = usual_blocks(dense) if blocks is None else blocks
    if type(count) is not int or not 1 <= count <= depth:
        raise ValueError(f"a learngene of blocks has 1 to {depth} of them here, got {blocks!r}")
    return count


def _norm(values: Sequence[Tensor]) -> float:
    return math.hypot(*(float(value.detach().double().norm()) for value in values))
