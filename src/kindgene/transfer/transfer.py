"""What a transfer is: a model for new classes, ready to train, and what of it is trained, travels, and is used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Transfer:
    """A model to train on new classes; `label_drop` is what the strategy needs the training loss to use.

    `rank` is the one it was made with, where the strategy has one; `blocks` are those, from 0, that alone of the
    pre-trained ones it begins with, where the strategy chooses. `beside` counts numbers that must travel besides the
    trained ones. `merge` folds what was trained into the model, in place, where that gives a plain one; None: the model
    is used as it is trained.
    """

    strategy: str
    model: nn.Module
    label_drop: float
    rank: int | None = None
    beside: int = 0
    merge: Callable[[nn.Module], nn.Module] | None = None
    blocks: tuple[int, ...] = ()

    @property
    def trained(self) -> dict[str, int]:
        """What is trained: parameter name -> how many numbers."""
        return {name: value.numel() for name, value in self.model.named_parameters() if value.requires_grad}

    @property
    def trainable(self) -> int:
        """How many numbers are trained."""
        return sum(self.trained.values())

    @property
    def travels(self) -> int:
        """Numbers that someone who has what was pre-trained needs: those trained, and `beside`."""
        return self.trainable + self.beside

    def in_use(self) -> nn.Module:
        """The model as it is used after training: merged into a plain one where the method allows that; a frozen copy.

        Its parameters and multiply-adds are what use costs (`evaluation/cost.py` counts them); the one that is trained
        stays as it is.
        """
        model = copy.deepcopy(self.model)
        return (model if self.merge is None else self.merge(model)).requires_grad_(False).eval()


@contextmanager
def drawing(generator: torch.Generator | None) -> Iterator[None]:
    """Within it torch's own generators follow from `generator`, and are afterwards what they were; None: as they are.

    For code that draws from nothing else, peft's and that of torch's layers.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield
