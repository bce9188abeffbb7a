"""A data set seen with other classes: several of its classes count as one, others are left out.

Shapes: N images of the view, B batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from kindgene.data.dataset import Dataset
from kindgene.data.labels import check_indices, check_names, chosen, held_out, listed
from kindgene.data.skipped import Skipped


@dataclass(frozen=True, eq=False, kw_only=True)
class RegroupedDataset(Dataset):
    """Some images of `source`, under other names; `regrouped` makes it. rows: which they are, int64 [N]."""

    source: Dataset
    rows: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    flip: bool = False
    skipped: tuple[Skipped, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), as of the source."""
        return self.source.shape

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices` (long [B]), as the source gives them."""
        check_indices(indices, len(self))
        return self.source.batch(self.rows[indices])

    def sample(self, indices: Tensor, numbers: Tensor, seed: int) -> Tensor:
        """The images at `indices` [B] as the source draws them for the samples `numbers` [B]."""
        check_indices(indices, len(self))
        return self.source.sample(self.rows[indices], numbers, seed)

    def subset(self, names: Sequence[str]) -> Self:
        """Only the classes `names`, with labels in the order asked for; the images keep their order."""
        kept, labels = chosen(self.labels, self.class_names, names)
        return replace(self, rows=self.rows[kept], labels=labels, class_names=tuple(names))

    def split(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Divide into (train, held_out), as `ArrayDataset.split` does."""
        mask = held_out(self.labels, self.class_names, fraction, seed)
        return self._where(~mask), self._where(mask)

    def _where(self, kept: Tensor) -> Self:
        return replace(self, rows=self.rows[kept], labels=self.labels[kept])

    def fingerprint(self) -> dict[str, Any]:
        """That of the source, with what the view makes of it."""
        return {
            **self.source.fingerprint(),
            "images": len(self),
            "class_names": list(self.class_names),
            "labels_sha256": hashlib.sha256(self.labels.numpy().tobytes()).hexdigest(),
            "rows_sha256": hashlib.sha256(self.rows.numpy().tobytes()).hexdigest(),
        }


def regrouped(dataset: Dataset, groups: Mapping[str, Sequence[str]]) -> RegroupedDataset:
    """`dataset` with the classes `groups`: new name -> the old names that it stands for, in the order of the labels.

    Images of other classes, and those without class, are left out; the rest keeps its order. Raises ValueError for
    names that the data do not have, listing them, and for an old name in two groups.
    """
    check_names(list(groups))
    wanted = [old for members in groups.values() for old in members]
    check_names(wanted)
    label_of = {name: label for label, name in enumerate(dataset.class_names)}
    missing = [name for name in wanted if name not in label_of]
    if missing:
        raise ValueError(
            f"the data lack {len(missing)} of {len(wanted)} classes that are needed: {listed(missing, 10)}"
        )
    nowhere = len(groups)
    new_label = torch.full((len(dataset.class_names) + 1,), nowhere)
    for label, members in enumerate(groups.values()):
        new_label[[label_of[old] for old in members]] = label
    labels = new_label[dataset.labels]
    kept = labels != nowhere
    return RegroupedDataset(
        source=dataset,
        rows=torch.nonzero(kept).flatten(),
        labels=labels[kept],
        class_names=tuple(groups),
        flip=dataset.flip,
        skipped=dataset.skipped,
    )
