"""The target matrices of a pool, of a run's weights and of a plain DiT in one form, ready to be measured.

Nothing is built to get them: components are read from tensors as they lie there, before any canonical form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kindgene.core.bank import RowTable
from kindgene.core.components import Components
from kindgene.core.config import KindConfig
from kindgene.core.convert import find_targets
from kindgene.core.gate import Gate
from kindgene.core.linear import KindLinear, split_parts
from kindgene.core.pieces import State
from kindgene.core.targets import BACKBONES
from kindgene.pool.parts import gated_parts

if TYPE_CHECKING:
    from kindgene.models.dit import DiT
    from kindgene.pool.pool import Pool

QKV = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Matrix:
    """One part of one target (q of a fused qkv, say), W [O, I].

    `shared`: the learngene's components u [G, O], s [G], v [G, I]; in a plain model the whole matrix, as components
    where it is a thin pair, else as it is. `tailors`: the components of the measured tailors, [C, K, ...] (None: there
    are none), zero-padded from their own ranks, `tailor_ranks` [C].
    """

    target: str
    part: int
    parts: int
    shared: Components | Tensor
    tailors: Components | None = None
    tailor_ranks: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        return self.shared.u.shape[-1] if isinstance(self.shared, Components) else self.shared.shape[0]

    @property
    def inputs(self) -> int:
        return self.shared.v.shape[-1] if isinstance(self.shared, Components) else self.shared.shape[1]


def short_name(target: str, part: int, parts: int) -> str:
    """``blocks.0.attn.qkv`` part 1 -> ``0 k``: number of the block, and matrix; a name without a number stays whole."""
    pieces = target.split(".")
    number = next((piece for piece in pieces if piece.isdigit()), "")
    name = next(piece for piece in reversed(pieces) if not piece.isdigit()) if number else target
    if parts == len(QKV):
        name = QKV[part]
    elif parts > 1:
        name = f"{name}[{part}]"
    return f"{number} {name.replace('_modulation', '')}".strip()


def kind_of(target: str, part: int, parts: int) -> str:
    """What the matrices at the same place of every block have in common: ``k``, ``fc1``."""
    return short_name(target, part, parts).rpartition(" ")[2]


def pool_matrices(pool: Pool) -> list[Matrix]:
    """Of a pool's learngene and the tailors that are loaded."""
    tailor_ranks = [pool.config.tailor_ranks_of(tailor.classes[0]) for tailor in pool.tailors]
    matrices = []
    for part in gated_parts(pool.config, pool.learngene, pool.tailors):
        own = Components(*(torch.stack(factor) for factor in zip(*part.own, strict=True))) if part.own else None
        ranks = tuple(tailor[part.target][part.index] for tailor in tailor_ranks)
        parts = len(pool.config.ranks[part.target])
        matrices.append(Matrix(part.target, part.index, parts, part.shared, own, ranks))
    return matrices


def trained_matrices(
    state: State, module: nn.Module, kind: KindConfig, rows: Sequence[int], source: str
) -> list[Matrix]:
    """Of the state of a decomposable model and these rows of its bank.

    `module` is the dense backbone it was made of, whose values do not matter (the meta device will do). Raises
    ValueError naming `source` and the tensor that is missing or misshapen.
    """
    targets = find_targets(module, kind)
    layers = [_layer(module, target.name, target.ranks, target.tailor_ranks) for target in targets]
    table = RowTable(1, {key: shape for layer in layers for key, shape in layer.piece_shapes.items()})
    bank = _take(state, "bank.tailors.rows", (max(kind.tailor_of) + 1, sum(table.sizes)), source)
    own = table.views(bank[list(rows)])
    matrices = []
    for layer in layers:
        total = sum(layer.component_ranks)
        shapes = {"u": (total, layer.part_features), "s": (total,), "v": (total, layer.in_features)}
        factors = [_take(state, f"module.{layer.name}.{name}", shape, source) for name, shape in shapes.items()]
        shared = split_parts(Components(*factors), layer.component_ranks)
        for part, (one, tailors) in enumerate(zip(shared, layer.tailor(own), strict=True)):
            ranks = (layer.tailor_ranks[part],) * len(rows)
            matrices.append(Matrix(layer.name, part, layer.parts, one, tailors if ranks else None, ranks))
    return matrices


def plain_matrices(state: State, module: DiT, source: str) -> list[Matrix]:
    """Of the state of a plain DiT, dense or merged into thin pairs: the matrices that could be targets.

    `module` says where they are; its values do not matter. Raises ValueError as `trained_matrices` does.
    """
    names = BACKBONES["DiT"]
    matrices = []
    for name, layer in module.named_modules():
        if any(fnmatchcase(name, pattern) for pattern in (*names.paper, *names.adaln)):
            fused = next((parts for pattern, parts in names.fused.items() if fnmatchcase(name, pattern)), 1)
            matrices += _plain(state, name, layer, fused, (module.config.low_rank or {}).get(name), source)
    return matrices


def _plain(
    state: State, name: str, layer: nn.Module, fused: int, ranks: Sequence[int | None] | None, source: str
) -> list[Matrix]:
    """The parts of one layer in the form that `ranks` describes (models/low_rank.py); None: dense."""
    if isinstance(layer, nn.Linear):
        weight = _take(state, f"{name}.weight", (layer.out_features, layer.in_features), source)
        return [Matrix(name, part, fused, one) for part, one in enumerate(weight.chunk(fused))]
    assert ranks is not None, "only a described layer is no nn.Linear"
    matrices = []
    for part, rank in enumerate(ranks):
        place = name if len(ranks) == 1 else f"{name}.parts.{part}"
        shared: Components | Tensor
        if rank is None:
            shared = _take(state, f"{place}.weight", None, source)
        else:
            u, v = _take(state, f"{place}.1.weight", None, source).mT, _take(state, f"{place}.0.weight", None, source)
            shared = Components(u, u.new_ones(rank), v)
        matrices.append(Matrix(name, part, len(ranks), shared))
    return matrices


def _layer(module: nn.Module, name: str, ranks: Sequence[int], tailor_ranks: Sequence[int]) -> KindLinear:
    """The gated layer that stands in a target's place, without memory: it knows how its tensors are cut."""
    old = module.get_submodule(name)
    assert isinstance(old, nn.Linear)
    return KindLinear(
        old.in_features,
        old.out_features,
        ranks,
        tailor_ranks,
        bias=False,
        gate=Gate(),
        name=name,
        device=torch.device("meta"),
    )


def _take(state: State, key: str, shape: tuple[int, ...] | None, source: str) -> Tensor:
    if key not in state:
        raise ValueError(f"{source}: {key} is missing")
    value = state[key]
    if shape is not None and tuple(value.shape) != shape:
        raise ValueError(f"{source}: {key} has shape {list(value.shape)}, expected {list(shape)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{source}: {key} has values that are not finite, so it has no spectrum")
    return value
