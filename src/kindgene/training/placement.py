"""Which process computes which sample of a step, and which holds which tailor (tailor parallelism is ours).

Shapes: B samples of a step, b of them a process's own, C classes, N tailors.

Class labels are known before the step. So a process can own whole classes: it alone holds their tailors and label rows,
with their optimizer state and averages, and it computes all of their samples. Gradients of tailors are then never
communicated. The batch is drawn as ever: nothing about which samples a step sees depends on the number of processes.
A class that has more than its share of the data would keep its owner busy while others wait: it is held by all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EVERYONE = -1
"""The owner of what all processes hold."""

_WEIGHT = 100  # a tailor without any sample weighs as much as 1/100 of the average tailor's samples, for its memory


class Division(Protocol):
    """Who computes what of a step, and needs which tailors for it."""

    def share(self, labels_B: Tensor, rank: int) -> Tensor:
        """Positions [b] in the batch, ascending, of the samples that process `rank` computes."""

    def gathered(self, labels_B: Tensor, own_b: Tensor) -> Tensor:
        """The labels whose rows a process gathers for the step; `own` are those of its samples."""


@dataclass(frozen=True)
class EvenDivision:
    """Each process takes the next part of the batch and holds all tailors; their gradients are summed."""

    size: int

    def share(self, labels_B: Tensor, rank: int) -> Tensor:
        return torch.arange(len(labels_B)).tensor_split(self.size)[rank]

    def gathered(self, labels_B: Tensor, own_b: Tensor) -> Tensor:
        return labels_B


@dataclass(frozen=True)
class Placement:
    """`owner` [N] is the process that holds each tailor, or EVERYONE; `tailor_of` [C] the tailor of each class.

    Samples go to their tailor's owner. Those of the null class, and of tailors that all hold, fill the gaps: they go
    where there is least to do.
    """

    owner: Tensor
    tailor_of: Tensor
    size: int

    @classmethod
    def of(cls, tailor_of: Sequence[int], images: Sequence[int], size: int) -> Placement:
        """The placement for classes with so many `images` [C] each, the same on every process: heaviest first, each to
        the process with least so far. A tailor with more than 1/size of all images is held by everyone.
        """
        count = max(tailor_of) + 1
        weight = [0] * count
        for tailor, number in zip(tailor_of, images, strict=True):
            weight[tailor] += number
        total = sum(weight)
        owner = torch.full((count,), EVERYONE)
        least = [(0, 0, rank) for rank in range(size)]  # weight, tailors, rank: a heap already
        for tailor in sorted(range(count), key=lambda index: -weight[index]):
            if size > 1 and weight[tailor] * size > total:
                continue
            load, held, rank = heapq.heappop(least)
            owner[tailor] = rank
            heapq.heappush(least, (load + weight[tailor] * count * _WEIGHT + total, held + 1, rank))
        return cls(owner, torch.tensor(list(tailor_of)), size)

    @classmethod
    def for_data(cls, tailor_of: Sequence[int], labels: Tensor, size: int) -> Placement:
        """The placement for a data set with these `labels` [images], those without class not counted."""
        classes = len(tailor_of)
        return cls.of(tailor_of, torch.bincount(labels, minlength=classes)[:classes].tolist(), size)

    def tailors(self, rank: int) -> Tensor:
        """Ids of the tailors that process `rank` holds, ascending."""
        return ((self.owner == rank) | (self.owner == EVERYONE)).nonzero().flatten()

    def classes(self, rank: int) -> Tensor:
        """Ids of the classes whose label rows process `rank` holds, ascending: those of its tailors."""
        owner_C = self.owner[self.tailor_of]
        return ((owner_C == rank) | (owner_C == EVERYONE)).nonzero().flatten()

    def owners(self, labels_B: Tensor) -> Tensor:
        """Who has to compute each sample [B]; EVERYONE where any process can."""
        null = len(self.tailor_of)
        closed_B = labels_B >= null
        return torch.where(closed_B, EVERYONE, self.owner[self.tailor_of[torch.where(closed_B, 0, labels_B)]])

    def share(self, labels_B: Tensor, rank: int) -> Tensor:
        owner_B = self.owners(labels_B)
        free = (owner_B == EVERYONE).nonzero().flatten()
        loads = torch.bincount(owner_B[owner_B != EVERYONE], minlength=self.size).tolist()
        parts = free.split(fill_up(loads, len(free)))
        return torch.cat([(owner_B == rank).nonzero().flatten(), parts[rank]]).sort().values

    def gathered(self, labels_B: Tensor, own_b: Tensor) -> Tensor:
        """Its own samples' labels, and all labels of tailors that everyone holds: those rows move on every process."""
        null = len(self.tailor_of)
        common_B = (self.owners(labels_B) == EVERYONE) & (labels_B < null)
        return torch.cat([own_b, labels_B[common_B]])


def fill_up(loads: Sequence[int], count: int) -> list[int]:
    """How many of `count` samples each process takes so that the fullest has as little as possible."""
    taken = [0] * len(loads)
    heap = [(load, rank) for rank, load in enumerate(loads)]
    heapq.heapify(heap)
    for _ in range(count):
        load, rank = heapq.heappop(heap)
        taken[rank] += 1
        heapq.heappush(heap, (load + 1, rank))
    return taken
