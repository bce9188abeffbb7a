"""What a plan decides about: every part of every target, with the components that the chosen classes have there.

A part is one matrix W [O, I] of a target (q of a fused qkv, say). In the gated form it has the learngene's components
and each tailor's; in the merged form all of them as one set, brought to canonical form together, so that a prefix is
the best part of the whole active matrix (Eckart-Young).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kindgene.core.components import Components, canonical, compose, concatenate, from_matrix, pad
from kindgene.core.pieces import State, layer_components
from kindgene.pool.classes import Ranks
from kindgene.pool.config import PoolConfig
from kindgene.pool.tailor import Tailor


@dataclass(frozen=True, eq=False)
class Part:
    """`shared`: the learngene's components (merged: the class's whole matrix); `own`: each tailor's, none if merged."""

    target: str
    index: int
    shared: Components
    own: tuple[Components, ...]

    @property
    def inputs(self) -> int:
        return self.shared.v.shape[-1]

    @property
    def outputs(self) -> int:
        return self.shared.u.shape[-1]

    @property
    def tailor_rank(self) -> int:
        """K of the tailors, which are padded to the widest; 0 in the merged form."""
        return self.own[0].rank if self.own else 0

    def squared_singular_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy of each component, float64: the learngene's [G], and the tailors', averaged over them [K]."""
        shared = self.shared.s.double().square()
        if not self.own:
            return shared, shared.new_zeros(0)
        return shared, torch.stack([own.s.double().square() for own in self.own]).mean(0)


def gated_parts(config: PoolConfig, learngene: State, tailors: Sequence[Tailor]) -> list[Part]:
    """The parts of a model behind its gate: the learngene's, and those of these tailors, zero-padded to one rank."""
    widest = widest_ranks(config, tailors)
    ranks_of = [config.tailor_ranks_of(tailor.classes[0]) for tailor in tailors]
    parts = []
    for target, ranks in config.ranks.items():
        own = [
            layer_components(t.components, target, ranks[target]) for t, ranks in zip(tailors, ranks_of, strict=True)
        ]
        for index, shared in enumerate(layer_components(learngene, target, ranks)):
            padded = tuple(pad(components[index], widest[target][index]) for components in own)
            parts.append(Part(target, index, shared, padded))
    return parts


def merged_parts(config: PoolConfig, learngene: State, tailor: Tailor) -> list[Part]:
    """The parts of one class's plain model: W = learngene + tailor, canonical, float64."""
    tailor_ranks = config.tailor_ranks_of(tailor.classes[0])
    parts = []
    for target, ranks in config.ranks.items():
        own = layer_components(tailor.components, target, tailor_ranks[target])
        for index, shared in enumerate(layer_components(learngene, target, ranks)):
            parts.append(Part(target, index, _joined(shared, own[index]), ()))
    return parts


def widest_ranks(config: PoolConfig, tailors: Sequence[Tailor]) -> Ranks:
    """For each part the highest rank among these tailors: what their common table is padded to."""
    ranks = [config.tailor_ranks_of(tailor.classes[0]) for tailor in tailors]
    return {
        target: tuple(max(column) for column in zip(*(r[target] for r in ranks), strict=True))
        for target in config.ranks
    }


def _joined(shared: Components, own: Components) -> Components:
    both = concatenate(shared, own).to(torch.float64)
    most = min(both.u.shape[-1], both.v.shape[-1])
    return from_matrix(compose(both), most) if both.rank > most else canonical(both)
