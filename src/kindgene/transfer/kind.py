"""KIND's transfers (DESIGN section 4): a pool's learngene with new tailors, frozen or not, with either null class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kindgene.core.config import Rank
from kindgene.core.decomposable import Decomposable
from kindgene.pool.fresh import TailorStart
from kindgene.pool.names import check_class_names
from kindgene.pool.pool import Pool
from kindgene.transfer.dense import LABEL_DROP
from kindgene.transfer.new_classes import POSITIONS
from kindgene.transfer.transfer import Transfer

NULL_NAME = "null"
"""The null tailor's name in a pool's terms; underscores are appended where a class is called so."""


class NullTailored(Decomposable):
    """A decomposable model whose null class has a tailor and a label row of its own: the last ones of its bank (ours).

    For domains so far away that the learngene alone is no good unconditional model. The bank has one class more than
    the model: the null label N opens the gate for row N. Label drop in the training loss trains it; guidance uses it.
    """

    @property
    def num_classes(self) -> int:
        return self.bank.num_classes - 1

    @property
    def null_class(self) -> int:
        """The label of the null tailor."""
        return self.bank.num_classes - 1

    def with_null_as_class(self) -> Decomposable:
        """The same modules as an ordinary model whose last class is the null tailor: what `Pool.add` takes.

        What is recombined with that class is guided as before by `sample(..., negative=null_name(classes))`.
        """
        model = Decomposable(self.module, self.bank, self.gate, self.kind, self.label_argument)
        assert self.class_names is not None
        model.class_names, model.weights = (*self.class_names, null_name(self.class_names)), self.weights
        return model


def null_name(class_names: Sequence[str]) -> str:
    """A name for the null tailor that none of the classes has."""
    name = NULL_NAME
    while name in class_names:
        name += "_"
    return name


def kind_transfer(
    pool: Pool,
    class_names: Sequence[str],
    tailor_rank: Rank | None = None,
    *,
    start: TailorStart = "random",
    generator: torch.Generator | None = None,
) -> Transfer:
    """KIND: frozen learngene, fresh tailors (see `Pool.transfer`). The null class is the base learngene, unchanged."""
    model = pool.transfer(class_names, tailor_rank, start=start, generator=generator)
    return Transfer("kind", model, label_drop=0.0, rank=_one(tailor_rank))


def kind_null_tailor(
    pool: Pool,
    class_names: Sequence[str],
    tailor_rank: Rank | None = None,
    *,
    start: TailorStart = "random",
    label_drop: float = LABEL_DROP,
    generator: torch.Generator | None = None,
) -> Transfer:
    """KIND with a new null tailor beside the new tailors: frozen learngene, one tailor and label row more (ours)."""
    names = check_class_names(class_names)
    model = pool.transfer([*names, null_name(names)], tailor_rank, start=start, generator=generator)
    own = NullTailored(model.module, model.bank, model.gate, model.kind, model.label_argument)
    own.class_names = names
    return Transfer("kind_null_tailor", own, label_drop, rank=_one(tailor_rank))


def kind_everything(
    pool: Pool,
    class_names: Sequence[str],
    tailor_rank: Rank | None = None,
    *,
    start: TailorStart = "random",
    label_drop: float = LABEL_DROP,
    generator: torch.Generator | None = None,
) -> Transfer:
    """KIND with everything trainable: learngene and all that is shared are fine-tuned together with fresh tailors.

    The result is no part of the pool any more: its learngene is another one.
    """
    model = pool.transfer(class_names, tailor_rank, start=start, generator=generator)
    for name, value in model.module.named_parameters():
        value.requires_grad_(name != POSITIONS)
    return Transfer("kind_everything", model, label_drop, rank=_one(tailor_rank))


def _one(rank: Rank | None) -> int | None:
    return rank if isinstance(rank, int) else None
