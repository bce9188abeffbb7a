"""From a dense checkpoint to a pool: every target's matrix becomes learngene components, tailors start at zero.

The learngene holds the singular value decomposition of each matrix: exact at full rank, the best part of lower ranks
(Eckart-Young), with the error named. A zero tailor has orthonormal random directions and singular values of zero:
canonical, adds nothing, and learns. Matrices are read and decomposed one at a time, so no more than one of them is in
memory beside the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kindgene.core.components import Components, from_matrix, truncate
from kindgene.core.config import KindConfig, Rank
from kindgene.core.convert import Target, find_targets
from kindgene.core.linear import join_parts
from kindgene.core.pieces import State
from kindgene.core.targets import BACKBONES
from kindgene.files import StrPath
from kindgene.interop.dense import Dense, open_dense
from kindgene.interop.source import DIFFUSION
from kindgene.pool.backbones import describe_backbone
from kindgene.pool.config import PoolConfig
from kindgene.pool.names import check_class_names
from kindgene.pool.pool import Pool
from kindgene.pool.tailor import Tailor
from kindgene.pool.tensors import check_finite, state_id

DTYPES = ("float32", "float64")


@dataclass(frozen=True, eq=False)
class Imported:
    """`errors`: target -> |W - its components| / |W|, by the singular values that were left out: 0 at full rank."""

    pool: Pool
    errors: Mapping[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The target that lost most, and how much."""
        return max(self.errors.items(), key=lambda item: item[1])


def import_dense(
    checkpoint: StrPath,
    classes: Sequence[str] | None = None,
    *,
    learngene_rank: Rank | Mapping[str, Rank] | None = None,
    tailor_rank: Rank = 4,
    targets: str | Sequence[str] = "paper+adaln",
    num_heads: int | None = None,
    time_frequencies: str | None = None,
    schedule: str | None = None,
    prediction: str | None = None,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """A pool made of a public-DiT checkpoint or of a diffusers folder (see `dense.open_dense`).

    `classes` name the label rows from the first on; rows without a name are left out (None: all rows, named "0", "1"
    ...). The last row is the null class. `learngene_rank` None keeps all of each matrix. `progress` is called with
    (matrices done, matrices in all). Raises ValueError for what cannot be imported.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    dense = open_dense(
        checkpoint,
        num_heads=num_heads,
        time_frequencies=time_frequencies,
        schedule=schedule,
        prediction=prediction,
    )
    return decompose_dense(dense, classes, learngene_rank, tailor_rank, targets, getattr(torch, dtype), progress)


def decompose_dense(
    dense: Dense,
    classes: Sequence[str] | None,
    learngene_rank: Rank | Mapping[str, Rank] | None,
    tailor_rank: Rank,
    targets: str | Sequence[str],
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """The pool of an opened dense model; arguments as in `import_dense`."""
    known = BACKBONES[type(dense.module).__name__]
    tables = [name for name, _ in dense.module.named_modules() if any(fnmatchcase(name, p) for p in known.class_rows)]
    names = _names(dense, tables, classes)
    chosen = _targets(dense.module, learngene_rank, tailor_rank, targets)
    learngene, errors = _learngene(dense, chosen, tables, dtype, progress)
    check_finite("this checkpoint", learngene)
    tailors, ranks = _zero_tailors(dense, chosen, learngene, tables, names, dtype)
    backbone, backbone_config = describe_backbone(dense.module)
    path = dense.path
    told = {"schedule": path.schedule, "prediction": path.prediction, "learn_sigma": path.learned_sigma}
    config = PoolConfig(
        backbone=backbone,
        backbone_config=backbone_config,
        ranks={target.name: target.ranks for target in chosen},
        label_tables=tuple(tables),
        label_argument=known.label_argument,
        learngene_id=state_id(learngene),
        learngene_sha256="",
        weights="ema" if dense.record.get("weights in") == "ema" else "raw",
        classes={},
        provenance={
            "recipe": "kindgene import",
            **dense.record,
            "largest error": max(errors.values()),
            DIFFUSION: told,
        },
    )
    entries = {name: entry for tailor in tailors for name, entry in tailor.entries(ranks).items()}
    return Imported(Pool(config.with_classes(entries), learngene, tailors), errors)


def _names(dense: Dense, tables: Sequence[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    rows: Any = dense.module.get_submodule(tables[0])
    most = rows.num_embeddings - 1
    names = check_class_names([str(label) for label in range(most)] if classes is None else classes)
    if len(names) > most:
        raise ValueError(f"{len(names)} classes were named; the label table has rows for {most} and the null class")
    return names


def _targets(
    module: nn.Module,
    learngene_rank: Rank | Mapping[str, Rank] | None,
    tailor_rank: Rank,
    patterns: str | Sequence[str],
) -> list[Target]:
    """The targets with their ranks; a learngene rank of None is each part's full width."""

    def find(rank: Rank | Mapping[str, Rank]) -> list[Target]:
        return find_targets(
            module, KindConfig(num_classes=1, learngene_rank=rank, tailor_rank=tailor_rank, targets=patterns)
        )

    if learngene_rank is not None:
        return find(learngene_rank)
    full: dict[str, Rank] = {}
    for target in find(1):
        outputs, inputs = module.get_parameter(f"{target.name}.weight").shape
        full[target.name] = min(inputs, outputs // len(target.ranks))
    return find(full)


def _learngene(
    dense: Dense,
    targets: Sequence[Target],
    tables: Sequence[str],
    dtype: torch.dtype,
    progress: Callable[[int, int], None] | None,
) -> tuple[State, dict[str, float]]:
    """All that is shared, and what each target lost."""
    by_name = {target.name: target for target in targets}
    state: State = {}
    errors: dict[str, float] = {}
    for key in dense.module.state_dict():
        owner, _, leaf = key.rpartition(".")
        if owner in by_name and leaf == "weight":
            kept, errors[owner] = _decomposed(dense, by_name[owner], dtype)
            state.update({f"{owner}.{factor}": value for factor, value in kept._asdict().items()})
            if progress is not None:
                progress(len(errors), len(by_name))
        elif owner in tables:
            state[f"{owner}.null_row"] = dense.read(key)[-1].to(dtype, copy=True)
        else:
            state[key] = dense.read(key).to(dtype, copy=True)
    return state, errors


def _decomposed(dense: Dense, target: Target, dtype: torch.dtype) -> tuple[Components, float]:
    """A target's components, part by part, and the relative error of what they stand for."""
    kept, lost, whole = [], 0.0, 0.0
    for part, rank in zip(dense.parts(f"{target.name}.weight", len(target.ranks)), target.ranks, strict=True):
        if not torch.isfinite(part).all():
            raise ValueError(f"{target.name}.weight has values that are not finite")
        every = from_matrix(part, min(part.shape))
        squares = every.s.square()
        lost, whole = lost + float(squares[rank:].sum()), whole + float(squares.sum())
        # Copies: a view of the first components would keep all of them in memory.
        kept.append(Components(*(factor.to(dtype, copy=True).contiguous() for factor in truncate(every, rank))))
    return join_parts(kept), math.sqrt(lost / whole) if whole else 0.0


def _zero_tailors(
    dense: Dense,
    targets: Sequence[Target],
    learngene: State,
    tables: Sequence[str],
    names: Sequence[str],
    dtype: torch.dtype,
) -> tuple[list[Tailor], dict[str, tuple[int, ...]]]:
    """A tailor for each class, with its label rows; their components are one and the same in memory."""
    generator = torch.Generator().manual_seed(0)
    components: State = {}
    for target in targets:
        u, v = (learngene[f"{target.name}.{factor}"].shape[1] for factor in "uv")
        parts = [_zero_components(rank, u, v, generator) for rank in target.tailor_ranks]
        for factor, value in join_parts(parts)._asdict().items():
            components[f"{target.name}.{factor}"] = value.to(dtype)
    rows = {table: dense.read(f"{table}.weight")[: len(names)].to(dtype, copy=True) for table in tables}
    tailors = [
        Tailor((name,), components, {table: rows[table][label : label + 1] for table in tables})
        for label, name in enumerate(names)
    ]
    return tailors, {target.name: target.tailor_ranks for target in targets}


def _zero_components(rank: int, outputs: int, inputs: int, generator: torch.Generator) -> Components:
    """The zero matrix in canonical form: random orthonormal u and v, s of zero, the largest |entry| of u positive."""
    u, v = (_orthonormal(rank, size, generator) for size in (outputs, inputs))
    sign = u.gather(1, u.abs().argmax(1, keepdim=True)).sign()
    return Components(u * sign, torch.zeros(rank, dtype=torch.float64), v)


def _orthonormal(rows: int, size: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(size, rows, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn).Q
    return basis.mT.contiguous()
