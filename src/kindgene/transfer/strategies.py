"""Transfer strategies under one interface: a model for new classes, ready to train, and what of it is trained.

KIND (DESIGN section 4): the learngene stays, new tailors and label rows are trained, label drop is 0 because the null
class is the learngene, which does not change. Full fine-tuning of a dense model, to compare with: all is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kindgene.core.config import Rank
from kindgene.models.dit import DiT
from kindgene.pool.fresh import TailorStart
from kindgene.pool.names import check_class_names
from kindgene.pool.pool import Pool

_LABEL_TABLE = "y_embedder.embedding_table.weight"


@dataclass(frozen=True)
class Transfer:
    """A model to train on new classes; `label_drop` is what the strategy needs the training loss to use."""

    strategy: str
    model: nn.Module
    label_drop: float

    @property
    def trained(self) -> dict[str, int]:
        """What is trained: parameter name -> how many numbers."""
        return {name: value.numel() for name, value in self.model.named_parameters() if value.requires_grad}


def kind_transfer(
    pool: Pool,
    class_names: Sequence[str],
    tailor_rank: Rank | None = None,
    *,
    start: TailorStart = "random",
    generator: torch.Generator | None = None,
) -> Transfer:
    """KIND: frozen learngene, fresh tailors (see `Pool.transfer`)."""
    model = pool.transfer(class_names, tailor_rank, start=start, generator=generator)
    return Transfer("kind", model, label_drop=0.0)


def full_finetuning(dense: DiT, class_names: Sequence[str], label_drop: float = 0.1) -> Transfer:
    """A dense DiT with the same weights, dtype and device and a label row for each new class, all of it trainable.

    New label rows start at the null row, as KIND's do (ours). `dense` is not changed. Raises ValueError for a DiT
    without a null row, and for names that cannot be.
    """
    names = check_class_names(class_names)
    if dense.null_class is None:
        raise ValueError("full fine-tuning starts new label rows at the null row, and this DiT has none")
    settings = {key: value for key, value in dense.config.items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]):  # its first weights, which are replaced, cost the caller no random numbers
        model = DiT(**{**settings, "num_classes": len(names), "class_names": list(names)})
    state = dense.state_dict()
    rows = state[_LABEL_TABLE]
    # By torch's own method: diffusers' override logs a warning about float32 modules that do not exist.
    nn.Module.to(model, device=rows.device, dtype=rows.dtype)
    model.load_state_dict({**state, _LABEL_TABLE: rows[-1].repeat(len(names) + 1, 1)}, strict=True)
    return Transfer("full_finetune", model, label_drop)
