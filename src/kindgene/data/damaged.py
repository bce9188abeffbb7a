"""Images that turn out damaged only when their batch is read: read without them, named, or refused.

For a job that reads each image once, such as encoding into latents: a pass over all images beforehand would cost as
much as the job's own reading, in every process.

Shapes: N images, B batch, n of them that can be decoded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kindgene.data.dataset import Dataset
from kindgene.data.skipped import DamagedImageError, Skipped, refuse


def read_fit(dataset: Dataset, indices: Tensor, *, skip: bool) -> tuple[Tensor, Tensor]:
    """Those of the images at `indices` (long [B]) that can be decoded, [n, C, H, W], and which they are, bool [B].

    Unless `skip`, raises ValueError for the first that cannot.
    """
    try:
        return dataset.batch(indices), torch.ones(len(indices), dtype=torch.bool)
    except DamagedImageError as error:
        if not skip:
            refuse([] if error.skipped is None else [error.skipped])
            raise
    found = [_one(dataset, index) for index in indices.tolist()]
    kept = [each for each in found if isinstance(each, Tensor)]
    fit = torch.tensor([isinstance(each, Tensor) for each in found])
    return torch.cat(kept) if kept else torch.empty(0, *dataset.shape), fit


def named(dataset: Dataset, indices: Sequence[int]) -> list[Skipped]:
    """Why the images at `indices` cannot be decoded, as shows when they are read again."""
    return [_named(dataset, index) for index in indices]


def refuse_emptied(dataset: Dataset, indices: Sequence[int], damaged: Sequence[Skipped]) -> None:
    """Raises ValueError for a class that has no image left without those at `indices`, which are `damaged` so."""
    kept = torch.ones(len(dataset), dtype=torch.bool)
    kept[list(indices)] = False
    left = torch.bincount(dataset.labels[kept], minlength=len(dataset.class_names) + 1)
    for index, each in zip(indices, damaged, strict=True):
        label = int(dataset.labels[index])
        if not left[label] and label < len(dataset.class_names):
            whose = f"class {dataset.class_names[label]!r}"
            raise ValueError(f"none of the images of {whose} can be used, the first: {each}; {each.advice}")


def _one(dataset: Dataset, index: int) -> Tensor | DamagedImageError:
    """One image [1, C, H, W], or why there is none."""
    try:
        return dataset.batch(torch.tensor([index]))
    except DamagedImageError as error:
        return error


def _named(dataset: Dataset, index: int) -> Skipped:
    found = _one(dataset, index)
    if isinstance(found, DamagedImageError) and found.skipped is not None:
        return found.skipped
    reason = "could not be decoded when its turn came, and can be now"
    return Skipped(f"image {index}", "broken", reason, "begin anew in another folder")
