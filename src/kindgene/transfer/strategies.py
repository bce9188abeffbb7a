"""Transfer strategies under one interface: a row for each, by name, from what was pre-trained to a `Transfer`.

KIND (DESIGN section 4): the learngene stays, new tailors and label rows are trained, label drop is 0 because the null
class is the learngene, which does not change. All others are what it is compared with; docs/baselines.md is the table
with sources and what of each is ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch

from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool
from kindgene.transfer import counts
from kindgene.transfer.adapters import adapter_ranks, adapter_transfer
from kindgene.transfer.class_lora import class_lora
from kindgene.transfer.dense import from_scratch, full_finetuning, linear_probe
from kindgene.transfer.kind import kind_everything, kind_null_tailor, kind_transfer
from kindgene.transfer.learngenes import Loss, automatic_learngene, heuristic_learngene
from kindgene.transfer.new_classes import TARGETS, Targets, matrices
from kindgene.transfer.svdiff import svdiff
from kindgene.transfer.transfer import Transfer

__all__ = [
    "STRATEGIES",
    "Start",
    "Strategy",
    "Transfer",
    "find_strategy",
    "full_finetuning",
    "kind_transfer",
    "make_transfer",
]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What there is to start from; a strategy takes what it needs.

    dense: a pre-trained dense DiT; targets: which of its matrices adapters adapt; pool: a pre-trained pool; loss: the
    training loss on some of the new data (auto_lg).
    """

    dense: DiT | None = None
    targets: Targets = TARGETS
    pool: Pool | None = None
    loss: Loss | None = None

    @property
    def its_dense(self) -> DiT:
        """The dense model; ValueError where there is none."""
        if self.dense is None:
            raise ValueError("this strategy starts from a pre-trained dense DiT: give Start(dense=...)")
        return self.dense

    @property
    def its_pool(self) -> Pool:
        """The pool; ValueError where there is none."""
        if self.pool is None:
            raise ValueError("this strategy starts from a pool: give Start(pool=...)")
        return self.pool

    @property
    def its_loss(self) -> Loss:
        """The loss on new data; ValueError where there is none."""
        if self.loss is None:
            raise ValueError("auto_lg chooses blocks by the new data: give Start(loss=...)")
        return self.loss


Names = Sequence[str]
Make = Callable[[Start, Names, int | None, torch.Generator | None], Transfer]


@dataclass(frozen=True)
class Ranked:
    """Of a strategy with a rank: the usual one (None: the pool's own), those it can have, ascending, what it trains.

    `trainable` is (start, classes, rank) -> how many numbers are trained, exactly.
    """

    usual: int | None
    possible: Callable[[Start], Sequence[int]]
    trainable: Callable[[Start, int, int], int]

    def default(self, start: Start) -> int | None:
        """The usual rank, or the next below it that these matrices can have (the lowest, if there is none below)."""
        if self.usual is None:
            return None
        possible = self.possible(start)
        return max((rank for rank in possible if rank <= self.usual), default=possible[0])


@dataclass(frozen=True)
class Strategy:
    """One row. `same_start`: each new class begins exactly as the pre-trained model with the null label."""

    name: str
    title: str
    needs: Literal["dense", "pool"]
    make: Make
    same_start: bool
    ranked: Ranked | None = None


def make_transfer(
    name: str,
    class_names: Sequence[str],
    start: Start,
    rank: int | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Transfer:
    """The transfer of that name to these classes; what is pre-trained is not changed.

    `rank` is for strategies that have one (OFT: the size of its blocks), by default the usual one (see `Ranked`);
    `generator` draws all that is random at the start. Raises ValueError for an unknown name, a start that lacks what
    the strategy needs, a rank where there is none or that cannot be, and impossible class names.
    """
    strategy = find_strategy(name)
    if strategy.ranked is None:
        if rank is not None:
            raise ValueError(f"{name} has no rank, got {rank!r}")
    elif rank is None:
        rank = strategy.ranked.default(start)
    return strategy.make(start, class_names, rank, generator)


def find_strategy(name: str) -> Strategy:
    """The row of that name; ValueError, with those there are, for any other."""
    if name not in STRATEGIES:
        near = difflib.get_close_matches(str(name), STRATEGIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no transfer strategy {name!r}; there is {', '.join(STRATEGIES)}{hint}")
    return STRATEGIES[name]


def _full(start: Start, names: Names, rank: int | None, generator: torch.Generator | None) -> Transfer:
    return full_finetuning(start.its_dense, names)


def _scratch(start: Start, names: Names, rank: int | None, generator: torch.Generator | None) -> Transfer:
    return from_scratch(start.its_dense, names, generator=generator)


def _probe(start: Start, names: Names, rank: int | None, generator: torch.Generator | None) -> Transfer:
    return linear_probe(start.its_dense, names)


def _svdiff(start: Start, names: Names, rank: int | None, generator: torch.Generator | None) -> Transfer:
    return svdiff(start.its_dense, names, targets=start.targets)


def _heuristic(start: Start, names: Names, rank: int | None, generator: torch.Generator | None) -> Transfer:
    return heuristic_learngene(start.its_dense, names, generator=generator)


def _automatic(start: Start, names: Names, rank: int | None, generator: torch.Generator | None) -> Transfer:
    return automatic_learngene(start.its_dense, names, start.its_loss, generator=generator)


def _adapter(method: str, start: Start, names: Names, rank: int | None, generator: torch.Generator | None) -> Transfer:
    assert rank is not None
    return adapter_transfer(method, start.its_dense, names, rank, targets=start.targets, generator=generator)


def _class_lora(start: Start, names: Names, rank: int | None, generator: torch.Generator | None) -> Transfer:
    assert rank is not None
    return class_lora(start.its_dense, names, rank, targets=start.targets, generator=generator)


def _kind(
    make: Callable[..., Transfer], start: Start, names: Names, rank: int | None, generator: torch.Generator | None
) -> Transfer:
    return make(start.its_pool, names, rank, generator=generator)


def _of_adapter(method: str, usual: int) -> Ranked:
    return Ranked(
        usual,
        lambda start: adapter_ranks(method, matrices(start.its_dense, start.targets)),
        lambda start, classes, rank: counts.adapter(method, start.its_dense, start.targets, classes, rank),
    )


def _of_kind(trainable: Callable[[Pool, int, int], int]) -> Ranked:
    return Ranked(
        None,
        lambda start: counts.tailor_ranks(counts.pool_matrices(start.its_pool)),
        lambda start, classes, rank: trainable(start.its_pool, classes, rank),
    )


_CLASS_LORA = Ranked(
    4,
    lambda start: counts.tailor_ranks(matrices(start.its_dense, start.targets)),
    lambda start, classes, rank: counts.class_lora(start.its_dense, start.targets, classes, rank),
)

_ROWS = (
    Strategy("kind", "KIND: learngene frozen, new tailors", "pool", partial(_kind, kind_transfer), False,
             _of_kind(counts.kind)),
    Strategy("kind_null_tailor", "KIND with a new null tailor", "pool", partial(_kind, kind_null_tailor), False,
             _of_kind(counts.kind_null_tailor)),
    Strategy("kind_everything", "KIND, everything trained", "pool", partial(_kind, kind_everything), False,
             _of_kind(counts.kind_everything)),
    Strategy("full_finetune", "full fine-tuning", "dense", _full, True),
    Strategy("scratch", "from scratch", "dense", _scratch, False),
    Strategy("linear_probe", "label table and final layer only", "dense", _probe, True),
    Strategy("lora", "LoRA", "dense", partial(_adapter, "lora"), True, _of_adapter("lora", 8)),
    Strategy("dora", "DoRA", "dense", partial(_adapter, "dora"), True, _of_adapter("dora", 8)),
    Strategy("pissa", "PiSSA", "dense", partial(_adapter, "pissa"), True, _of_adapter("pissa", 8)),
    Strategy("loha", "LoHa", "dense", partial(_adapter, "loha"), True, _of_adapter("loha", 8)),
    Strategy("oft", "OFT", "dense", partial(_adapter, "oft"), True, _of_adapter("oft", 32)),
    Strategy("svdiff", "SVDiff", "dense", _svdiff, True),
    Strategy("class_lora", "per-class LoRA on the dense twin, behind KIND's gate", "dense", _class_lora, True,
             _CLASS_LORA),
    Strategy("heur_lg", "Heur-LG on DiT (ours)", "dense", _heuristic, False),
    Strategy("auto_lg", "Auto-LG on DiT (ours)", "dense", _automatic, False),
)  # fmt: skip
STRATEGIES: Mapping[str, Strategy] = MappingProxyType({row.name: row for row in _ROWS})
