"""What the components look like while they are trained: cheap enough for every few hundred steps.

Shapes: G learngene components, I in, O out (of one part), R tailors looked at, K components of a tailor, P numbers a
row, M matrices (the parts of all targets).

Nothing is changed and nothing random is drawn. The measures are those of `kindgene inspect`, in the few numbers that
are worth a curve; that the constraint U diag(s) V^T is kept up by training alone, so that U and V may leave
orthogonality, is KIND's (section 3); what to watch of it is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from kindgene.core.components import Components
from kindgene.core.decomposable import Decomposable
from kindgene.core.linear import split_parts
from kindgene.training.processes import ALONE, Processes

TAILORS = 32
"""At most so many tailors are looked at, evenly spaced among those at hand (ours)."""

_DIGITS = 6  # significant ones in the log


@torch.no_grad()
def diagnose(model: nn.Module, processes: Processes = ALONE) -> dict[str, Any]:
    """Singular values, energies and orthogonality of every matrix, as plain data for the log; {} of a plain module.

    ``{"summary": {...}, "layers": {name: {...}}}``, where the name of a fused layer's part ends in its number
    (``blocks.0.attn.qkv.2``). Of each matrix:

    - ``singular_largest``, ``singular_median``, ``singular_smallest`` of the learngene's product U diag(s) V^T, not of
      the parameter s: QR of U and V, then the singular values of the G x G core R_U diag(s) R_V^T. In the summary:
      means over the matrices.
    - ``learngene_energy``, ``tailor_energy``: shares of ||L||_F^2 and of the mean ||T||_F^2 of the tailors looked at in
      the sum of both. In the summary: of the sums over all matrices.
    - ``orthogonality_u``, ``orthogonality_v``: ||N - I||_F / sqrt(G), N the Gram matrix of the learngene's directions
      scaled to length 1; 0: orthogonal (`structure.drift` is this over sqrt(G - 1)). In the summary: means.

    ``summary`` also has ``layers``, the number of matrices, and ``tailors``, of those looked at. What is not finite or
    not defined is None.

    Where a process holds a part of the model only, all `processes` call this: what they hold of the learngene
    (DTensor) is put together layer by layer, and each looks at its share of the tailors (one that several hold counts
    as often). Elsewhere one is enough.
    """
    if not isinstance(model, Decomposable):
        return {}
    spread = model.bank.tailors.held is not None
    own = _some_rows(model.bank.tailors.rows, -(-TAILORS // processes.size) if spread else TAILORS)
    pieces = model.bank.tailors.views(own)
    names: list[str] = []
    ranks: list[int] = []
    measured: list[Tensor] = []
    energies: list[Tensor] = []
    for name, layer in model.layers.items():
        factors = Components(*(_whole(value) for value in (layer.u, layer.s, layer.v)))
        parts = split_parts(factors, layer.component_ranks)
        assert len(parts) == layer.parts, "a model in training keeps every part as components"
        for index, (learngene, tailors) in enumerate(zip(parts, layer.tailor(pieces), strict=True)):
            names.append(f"{name}.{index}" if layer.parts > 1 else name)
            ranks.append(learngene.rank)
            measured.append(_measure(learngene))
            energies.append(_energy(tailors).sum())

    # One tensor a kind of number, so that a device is waited for once.
    columns = torch.stack(measured).tolist()
    totals = torch.stack([*energies, torch.full_like(energies[0], len(own))])  # [M + 1]
    if spread:
        processes.sum_(totals)
    *sums, count = totals.tolist()
    return _report(names, ranks, columns, [one / count if count else math.nan for one in sums], int(count))


def gradient_norms(shared: Iterable[Tensor], rows: Iterable[Tensor]) -> dict[str, float | None]:
    """Norms of two sets of gradients: of all that is shared, ``learngene``, and of the rows, ``tailors``.

    0 where there are none, None where one is not finite. Of DTensors all processes call this; of rows that live on
    several processes the sum of squares is the caller's to take.
    """
    return {"learngene": _norm(list(shared)), "tailors": _norm(list(rows))}


def _norm(gradients: list[Tensor]) -> float | None:
    return _plain(float(_whole(get_total_norm(gradients)))) if gradients else 0.0


def _some_rows(rows: Tensor, most: int) -> Tensor:
    """At most `most` rows [R, P], evenly spaced."""
    count = len(rows)
    if count <= most:
        return rows.detach()
    chosen = torch.arange(most, device=rows.device) * count // most
    return rows.detach().index_select(0, chosen)


def _measure(learngene: Components) -> Tensor:
    """[6]: largest, median, smallest singular value, energy, orthogonality of U and of V; NaN if not finite.

    float32, in which monitoring is precise enough: singular values down to 1e-7 of the largest.
    """
    u, s, v = learngene.to(torch.float32)
    r_u, r_v = _triangle(u), _triangle(v)
    core = (r_u * s) @ r_v.mT
    finite = core.isfinite().all()
    singular = torch.linalg.svdvals(torch.where(finite, core, 0.0))
    median = singular[[(len(singular) - 1) // 2, len(singular) // 2]].mean()
    values = [singular[0], median, singular[-1], singular.square().sum(), _orthogonality(r_u), _orthogonality(r_v)]
    return torch.where(finite, torch.stack(values), torch.nan).double()


def _triangle(rows_GD: Tensor) -> Tensor:
    """R [min(G, D), G] of the QR of the directions as columns: all that lengths and angles depend on."""
    triangle: Tensor = torch.linalg.qr(rows_GD.mT, mode="r")[1]
    return triangle


def _orthogonality(triangle: Tensor) -> Tensor:
    """||N - I||_F / sqrt(G); directions of zero are left out of the sum, not of G."""
    length = triangle.norm(dim=0)
    unit = triangle / torch.where(length > 0, length, 1.0)
    cosines = unit.mT @ unit
    cosines.diagonal().zero_()
    drift: Tensor = cosines.square().sum().sqrt() / math.sqrt(triangle.shape[1])
    return drift


def _energy(tailors: Components) -> Tensor:
    """||U diag(s) V^T||_F^2 [R] of tailors [R, K, ...], from the K x K Gram matrices; float64."""
    u, s, v = tailors.to(torch.float32)
    scaled = u * s.unsqueeze(-1)
    return ((scaled @ scaled.mT) * (v @ v.mT)).sum((-2, -1)).double()


def _report(
    names: Sequence[str], ranks: Sequence[int], columns: Sequence[Sequence[float]], own: Sequence[float], tailors: int
) -> dict[str, Any]:
    keys = ("singular_largest", "singular_median", "singular_smallest", "orthogonality_u", "orthogonality_v")
    layers = {}
    for name, rank, column, tailor in zip(names, ranks, columns, own, strict=True):
        *singular, energy, drift_u, drift_v = column
        values = dict(zip(keys, (*singular, drift_u, drift_v), strict=True)) | _shares(energy, tailor)
        layers[name] = {"rank": rank, **{key: _plain(value) for key, value in values.items()}}
    means = {
        key: math.fsum(column[place] for column in columns) / len(columns)
        for key, place in zip(keys, (0, 1, 2, 4, 5), strict=True)
    }
    shares = _shares(sum(column[3] for column in columns), sum(own))
    summary = {key: _plain(value) for key, value in (means | shares).items()}
    return {"summary": {"layers": len(names), "tailors": tailors, **summary}, "layers": layers}


def _shares(learngene: float, tailor: float) -> dict[str, float]:
    total = learngene + tailor
    return {
        "learngene_energy": learngene / total if total else math.nan,
        "tailor_energy": tailor / total if total else math.nan,
    }


def _plain(value: float) -> float | None:
    """As JSON can hold it, and no longer than it is precise."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _whole(value: Tensor) -> Tensor:
    """The whole of a tensor of which every process may hold a part."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value
