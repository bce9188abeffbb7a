"""What is measured of every target matrix, as plain data: of the learngene, of each tailor, and of tailors in pairs.

"Share", "overlap" and the others are defined in `structure.py`. What is not defined (the overlap of a matrix that is
still zero, pairs where there is one tailor) is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kindgene.core.components import Components
from kindgene.evaluation import structure
from kindgene.evaluation.matrices import Matrix, kind_of, short_name
from kindgene.evaluation.structure import Spaces

Number = float | None
ORTHOGONAL = 1e-6
"""A drift up to this is rounding in float32 alone (ours)."""
ANGLES = 32
"""Principal angles are those between at most so many tailors, evenly spaced among the measured ones (ours)."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Of one matrix: `energy` is ||W||_F^2; drift (root mean square cosine) is None where there are no components."""

    rank: int
    singular_values: list[float]
    effective_rank: float
    energy: float
    drift_u: Number
    drift_v: Number


@dataclass(frozen=True, kw_only=True)
class TailorSpectrum(Spectrum):
    """Of one tailor T beside its learngene L. The overlaps say how much of its spaces lies in the learngene's."""

    energy_share: Number
    learngene_overlap_u: Number
    learngene_overlap_v: Number


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Means over all pairs of tailors; `random` is what random spaces of the same dimensions have.

    `angles_u` and `angles_v` are the principal angles in degrees, smallest first, each averaged over the pairs.
    """

    overlap_u: Number
    overlap_v: Number
    random_u: Number
    random_v: Number
    angles_u: list[Number]
    angles_v: list[Number]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One part of one target. `shared` is the learngene; in a plain model the whole matrix.

    `cheaper_dense`: learngene and one tailor need at least the multiply-adds of the dense matrix (None: it is dense).
    `random_learngene_u`, `random_learngene_v`: what random spaces have as a tailor's overlap with the learngene.
    """

    target: str
    part: int
    name: str
    kind: str
    outputs: int
    inputs: int
    shared: Spectrum
    tailors: list[TailorSpectrum]
    pairs: Pairs | None
    cheaper_dense: bool | None
    random_learngene_u: Number
    random_learngene_v: Number


@dataclass(frozen=True, kw_only=True)
class TailorSummary:
    """A tailor over all matrices: its classes, and ||T||_F^2 / (||L||_F^2 + ||T||_F^2) with both summed over them."""

    classes: list[str]
    energy_share: Number


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Of one set of weights ("ema", "raw"; "saved" where that is not known).

    `tailors` are those measured; `overlap_u` and `overlap_v` [C][C] the overlaps of each two of them, averaged over all
    matrices, and `random_u`, `random_v` what random spaces have.
    """

    weights: str
    layers: list[Layer]
    tailors: list[TailorSummary]
    overlap_u: list[list[Number]]
    overlap_v: list[list[Number]]
    random_u: Number
    random_v: Number

    @property
    def largest_drift(self) -> float:
        """The largest drift of any learngene and tailor; 0 where there are no components."""
        spectra = [one for layer in self.layers for one in (layer.shared, *layer.tailors)]
        return max((value or 0.0 for one in spectra for value in (one.drift_u, one.drift_v)), default=0.0)


@torch.no_grad()
def measure(weights: str, matrices: Sequence[Matrix], classes: Sequence[Sequence[str]]) -> Structure:
    """Measures every matrix; `classes` names those of each measured tailor."""
    layers, overlaps = [], []
    for matrix in matrices:
        layer, pairwise = _measure(matrix)
        layers.append(layer)
        overlaps.append(pairwise)
    means = torch.stack(overlaps).nanmean(0) if classes else torch.zeros(2, 0, 0)
    shared = sum(layer.shared.energy for layer in layers)
    own = [sum(layer.tailors[index].energy for layer in layers) for index in range(len(classes))]
    return Structure(
        weights=weights,
        layers=layers,
        tailors=[
            TailorSummary(classes=list(names), energy_share=energy / (shared + energy) if shared + energy else None)
            for names, energy in zip(classes, own, strict=True)
        ],
        overlap_u=[_numbers(row) for row in means[0]],
        overlap_v=[_numbers(row) for row in means[1]],
        random_u=mean([layer.pairs.random_u for layer in layers if layer.pairs]),
        random_v=mean([layer.pairs.random_v for layer in layers if layer.pairs]),
    )


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` indices out of `count`."""
    chosen = min(count, most)
    return [index * count // chosen for index in range(chosen)]


def mean(values: Sequence[Number]) -> Number:
    """The mean of what is defined; None where nothing is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _measure(matrix: Matrix) -> tuple[Layer, Tensor]:
    """A layer, and the overlaps [2, C, C] of its tailors' column and row spaces."""
    place, sizes = (matrix.target, matrix.part, matrix.parts), (matrix.outputs, matrix.inputs)
    tailors: list[TailorSpectrum] = []
    pairs, pairwise = None, torch.zeros(2, 0, 0, dtype=torch.float64)
    random: list[Number] = [None, None]
    cheaper_dense = None
    if isinstance(matrix.shared, Tensor):
        own = _spectrum(min(sizes), torch.linalg.svdvals(matrix.shared.to(torch.float64)))
    else:
        learngene = structure.spaces(matrix.shared)
        own = _spectrum(matrix.shared.rank, learngene.s, matrix.shared)
        active = matrix.shared.rank + max(matrix.tailor_ranks, default=0)
        cheaper_dense = active * sum(sizes) >= math.prod(sizes)
        if matrix.tailors is not None:
            spaces = structure.spaces(matrix.tailors)
            tailors = _tailors(matrix.tailor_ranks, matrix.tailors, spaces, learngene)
            pairwise = torch.stack([structure.pairwise_overlap(basis) for basis in (spaces.column, spaces.row)])
            pairs = _pairs(spaces, pairwise, sizes) if len(tailors) > 1 else None
            expected = (structure.random_overlap(learngene.dimension, spaces.dimension, size) for size in sizes)
            random = [float(value.mean()) for value in expected]
    layer = Layer(
        target=matrix.target,
        part=matrix.part,
        name=short_name(*place),
        kind=kind_of(*place),
        outputs=matrix.outputs,
        inputs=matrix.inputs,
        shared=own,
        tailors=tailors,
        pairs=pairs,
        cheaper_dense=cheaper_dense,
        random_learngene_u=random[0],
        random_learngene_v=random[1],
    )
    return layer, pairwise


def _spectrum(rank: int, s: Tensor, components: Components | None = None) -> Spectrum:
    return Spectrum(
        rank=rank,
        singular_values=s.tolist(),
        effective_rank=float(structure.effective_rank(s)),
        energy=float(s.square().sum()),
        drift_u=None if components is None else float(structure.drift(components.u)),
        drift_v=None if components is None else float(structure.drift(components.v)),
    )


def _tailors(ranks: Sequence[int], own: Components, spaces: Spaces, learngene: Spaces) -> list[TailorSpectrum]:
    """Of every tailor of one matrix: `own` [C, K, ...] and its `spaces`, beside the learngene's."""
    energy_C, base = spaces.s.square().sum(-1), learngene.s.square().sum()
    columns = {
        "effective_rank": structure.effective_rank(spaces.s),
        "energy": energy_C,
        "drift_u": structure.drift(own.u),
        "drift_v": structure.drift(own.v),
        "energy_share": structure.energy_share(base, energy_C),
        "learngene_overlap_u": structure.overlap(spaces.column, learngene.column),
        "learngene_overlap_v": structure.overlap(spaces.row, learngene.row),
    }
    rows = zip(*(_numbers(values) for values in columns.values()), strict=True)
    return [
        TailorSpectrum(rank=rank, singular_values=s[:rank], **dict(zip(columns, row, strict=True)))
        for rank, s, row in zip(ranks, spaces.s.tolist(), rows, strict=True)
    ]


def _pairs(spaces: Spaces, pairwise: Tensor, sizes: Sequence[int]) -> Pairs:
    """Means over the pairs of tailors that both have a direction, of at most `ANGLES` of them for the angles.

    `pairwise` are the overlaps [2, C, C] of their column and row spaces.
    """
    count, size = len(spaces.s), spaces.dimension
    first, second = torch.triu_indices(count, count, 1).unbind()
    some = torch.tensor(evenly_spaced(count, ANGLES))
    i, j = torch.triu_indices(len(some), len(some), 1).unbind()
    smaller = torch.minimum(size[some][i], size[some][j])
    randoms, angles = [], []
    for basis, outer in zip((spaces.column, spaces.row), sizes, strict=True):
        expected = structure.random_overlap(size[first], size[second], outer)
        randoms.append(_number(expected[pairwise[0][first, second].isfinite()].mean()))
        cosines = structure.pairwise_cosines(basis[some])[i, j]
        there = torch.arange(cosines.shape[-1]) < smaller.unsqueeze(-1)
        angles.append(torch.where(there, torch.rad2deg(torch.arccos(cosines)), torch.nan).nanmean(0))
    overlap_u, overlap_v = (_number(one[first, second].nanmean()) for one in pairwise)
    return Pairs(
        overlap_u=overlap_u,
        overlap_v=overlap_v,
        random_u=randoms[0],
        random_v=randoms[1],
        angles_u=_numbers(angles[0]),
        angles_v=_numbers(angles[1]),
    )


def _number(value: Tensor) -> Number:
    return _numbers(value.reshape(1))[0]


def _numbers(values: Tensor) -> list[Number]:
    """[N] as plain numbers; None for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]
