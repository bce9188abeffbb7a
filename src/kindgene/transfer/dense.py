"""Transfers of a plain dense DiT without anything added: fine-tuning all of it, its two ends, or starting anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kindgene.models.dit import DiT
from kindgene.transfer.new_classes import LABEL_TABLE, for_new_classes, train_only, unfilled
from kindgene.transfer.transfer import Transfer, drawing

LABEL_DROP = 0.1
"""DiT's own, for what trains the null row too."""


def full_finetuning(dense: DiT, class_names: Sequence[str], label_drop: float = LABEL_DROP) -> Transfer:
    """A dense DiT with the same weights, dtype and device and a label row for each new class, all of it trainable.

    New label rows start at the null row, as KIND's do (ours). `dense` is not changed. Raises ValueError for a DiT
    without a null row, and for names that cannot be.
    """
    return Transfer("full_finetune", for_new_classes(dense, class_names), label_drop)


def from_scratch(
    dense: DiT,
    class_names: Sequence[str],
    label_drop: float = LABEL_DROP,
    *,
    generator: torch.Generator | None = None,
) -> Transfer:
    """A DiT of the same sizes, freshly initialised with `generator`, all of it trainable: nothing is transferred."""
    with drawing(generator):
        return Transfer("scratch", unfilled(dense, class_names), label_drop)


def linear_probe(dense: DiT, class_names: Sequence[str], label_drop: float = LABEL_DROP) -> Transfer:
    """Only label table and final layer are trained: the nearest that a denoiser has to a linear probe (ours)."""
    model = for_new_classes(dense, class_names)
    train_only(model, LABEL_TABLE, r"final_layer\..*")
    return Transfer("linear_probe", model, label_drop)
