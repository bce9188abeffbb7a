"""The tailor bank: what belongs to one class, as rows of contiguous memory.

Shapes: N rows, P numbers a row, R rows gathered for a step, B batch, M tailors a sample uses at once, C classes.

A `RowTable` is one parameter [N, P]; a row is cut into named pieces. The bank has two: the components of every tailor
(all its targets) and the label rows of every class. They are two because several classes may share one tailor: an
absent class's label row must stay untouched while its tailor moves. Everything that costs time in training
(gradient, optimizer, EMA, clipping) works on the rows of the classes present, gathered into a leaf (ours).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kindgene.core.gate import Selection

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class GatheredTable:
    """Rows of one table as a leaf for one step: values [R, P] requires grad, ids [R] ascending, the first `count` real.

    Padding rows (id N) hold zeros, so that shapes do not depend on how many classes a batch happens to have.
    `positions` [count] say where the real rows stand in the table's parameter.
    """

    ids: Tensor
    values: Tensor
    count: int
    positions: Tensor

    @property
    def present(self) -> Tensor:
        """Ids [count] of the real rows."""
        return self.ids[: self.count]

    def slots(self, wanted: Tensor) -> Tensor:
        """Where each wanted row id stands in `values`; R (out of range: an error, never another's row) if absent."""
        if self.ids.numel() == 0:
            return torch.zeros_like(wanted)
        position = torch.searchsorted(self.ids, wanted.contiguous()).clamp(max=self.ids.numel() - 1)
        return torch.where(self.ids[position] == wanted, position, self.ids.numel())


@dataclass(frozen=True)
class GatheredRows:
    """The rows of the classes present in one optimizer step; pass it to the model's forward as ``rows=``."""

    tailors: GatheredTable
    labels: GatheredTable


class RowTable(nn.Module):
    """One parameter [N, P] whose rows are cut into named pieces, and gathered and scattered by row.

    One process of several may hold some of the rows only (`hold`): then the parameter is [H, P], and `held` [H] says
    which rows of the N these are, ascending. Row ids are those of the whole table, always.
    """

    held: Tensor | None

    def __init__(
        self, count: int, shapes: Shapes, dtype: torch.dtype | None = None, held: Tensor | None = None
    ) -> None:
        super().__init__()
        self.count = count
        self.shapes = dict(shapes)
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.rows = nn.Parameter(torch.zeros(count if held is None else len(held), sum(self.sizes), dtype=dtype))
        self.register_buffer("held", held, persistent=False)

    @torch.no_grad()
    def hold(self, ids: Tensor) -> None:
        """Keeps the rows `ids` (ascending) and lets go of the memory of all others."""
        assert self.held is None, "some rows are let go of already"
        held = ids.to(self.rows.device)
        self.rows = nn.Parameter(self.rows.detach()[held], requires_grad=self.rows.requires_grad)
        self.held = held

    def positions(self, ids: Tensor) -> Tensor:
        """Where the rows `ids` stand in the parameter. Raises ValueError for one that this process does not hold."""
        if self.held is None:
            return ids
        absent = ids[~torch.isin(ids, self.held)].tolist()
        if absent:
            raise ValueError(f"this process holds {len(self.held)} of {self.count} rows, and not {absent[:10]}")
        return torch.searchsorted(self.held, ids)

    def views(self, values: Tensor) -> dict[str, Tensor]:
        """Named pieces [R, *shape] of values [R, P]; one split, so that its backward is one concatenation."""
        pieces = values.split(self.sizes, dim=1)
        return {
            name: piece.unflatten(1, shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def row(self, index: int) -> dict[str, Tensor]:
        """Named pieces [*shape] of one row: views, detached; writing to them writes to the bank."""
        position = index
        if self.held is not None:
            position = int(self.positions(torch.tensor([index], device=self.rows.device)))
        return {name: piece[0] for name, piece in self.views(self.rows.detach()[position : position + 1]).items()}

    def gather(self, wanted: Tensor, size: int) -> GatheredTable:
        """Copies the distinct wanted rows into a leaf of min(size, N) rows, zero-padded."""
        size = min(size, self.count)
        present = torch.unique(wanted)
        if present.numel() > size:
            raise ValueError(f"{present.numel()} different rows do not fit in a gather of {size}")
        count = present.numel()
        ids = torch.full((size,), self.count, dtype=torch.long, device=self.rows.device)
        ids[:count] = present
        positions = self.positions(present)
        values = self.rows.new_zeros(size, self.rows.shape[1])
        values[:count] = self.rows.detach()[positions]
        return GatheredTable(ids, values.requires_grad_(self.rows.requires_grad), count, positions)


class TailorBank(nn.Module):
    """All tailors and label rows of a model.

    `tailor_of` [C] maps a class to its tailor's row (the identity unless classes share tailors). Labels [B] are class
    ids, C being the null class; soft gates are weights [B, C]. `held`: ids, ascending, of the tailors that there is
    memory for, with the label rows of their classes; None: all.
    """

    tailor_of: Tensor

    def __init__(
        self,
        tailor_of: Sequence[int],
        shapes: Shapes,
        label_shapes: Shapes,
        dtype: torch.dtype | None = None,
        held: Tensor | None = None,
    ):
        super().__init__()
        tailor_of_C = torch.tensor(list(tailor_of), dtype=torch.long)
        classes = None if held is None else torch.isin(tailor_of_C, held).nonzero().flatten()
        self.tailors = RowTable(max(tailor_of) + 1, shapes, dtype, held)
        self.labels = RowTable(len(tailor_of), label_shapes, dtype, classes)
        self.register_buffer("tailor_of", tailor_of_C, persistent=False)

    @property
    def num_classes(self) -> int:
        return self.labels.count

    @property
    def tables(self) -> dict[str, RowTable]:
        """The tables that hold anything, by name."""
        return {name: table for name, table in (("tailors", self.tailors), ("labels", self.labels)) if table.sizes}

    def gather(self, labels: Tensor, size: int | None = None) -> GatheredRows:
        """The rows of the classes among the labels (ids [B] or soft weights [B, C]), as leaves for one optimizer step.

        `size` is the number of rows to pad to (default: the number of labels, at most the number of rows there are):
        the same for every step, so shapes are static. Null labels need no row.
        """
        self.check(labels)
        if labels.dim() == 2:
            classes = (labels != 0).any(0).nonzero().flatten()
        else:
            classes = labels[labels != self.num_classes].long()
        size = labels.numel() if size is None else size
        return GatheredRows(self.tailors.gather(self.tailor_of[classes], size), self.labels.gather(classes, size))

    def select(self, labels: Tensor, rows: GatheredRows | None = None, share: float = 1.0) -> Selection:
        """What a forward with these labels uses: class ids [B] (null: C) or soft weights [B, C].

        `share` in (0, 1] is that of each matrix's learngene components, the first ones. Raises ValueError on labels of
        the wrong dtype, shape or range, and on rows that lack a class among them (both are looked at on CPU; elsewhere
        they are a device-side index error, never a silent one).
        """
        self.check(labels)
        if not 0.0 < share <= 1.0:
            raise ValueError(f"the share of the learngene must lie above 0 and be at most 1, got {share!r}")
        classes, weight = _hard(labels, self.num_classes) if labels.dim() == 1 else _soft(labels)
        weight = weight.to(self.tailors.rows.dtype)
        tailors = self.tailor_of[classes]
        if rows is None:
            if self.tailors.held is not None:
                raise ValueError(
                    "this process holds the tailors of its own classes only: give rows= (bank.gather), or take the "
                    "model from the run's folder"
                )
            tailor_values: Tensor = self.tailors.rows
            label_values: Tensor = self.labels.rows
            tailor_index, label_index = tailors, classes
        else:
            tailor_values, label_values = rows.tailors.values, rows.labels.values
            closed = weight == 0
            tailor_index = torch.where(closed, 0, rows.tailors.slots(tailors))
            label_index = torch.where(closed, 0, rows.labels.slots(classes))
            _check_present(rows.tailors, tailor_index, tailors)
            if self.labels.sizes:
                _check_present(rows.labels, label_index, classes)
        return Selection(
            tailors=self.tailors.views(tailor_values),
            labels=self.labels.views(label_values),
            tailor_index=tailor_index,
            label_index=label_index,
            weight=weight,
            share=share,
        )

    def check(self, labels: Tensor) -> None:
        """Refuses labels that no gate of this bank can mean."""
        classes = self.num_classes
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels must be a tensor of class ids or of soft weights, got {type(labels).__name__}")
        if labels.is_floating_point():
            if labels.dim() != 2 or labels.shape[1] != classes or not labels.shape[0]:
                raise ValueError(
                    f"soft gate weights must be [batch, {classes}] (one weight a class, none for null), "
                    f"got shape {list(labels.shape)}"
                )
            if _may_look(labels) and not torch.isfinite(labels).all():
                raise ValueError("soft gate weights must be finite")
            return
        if labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"labels must be int64 class ids or floating soft weights, got {labels.dtype}")
        if labels.dim() != 1 or labels.numel() == 0:
            raise ValueError(f"labels must be [batch] with at least one sample, got shape {list(labels.shape)}")
        if _may_look(labels):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > classes:
                raise ValueError(
                    f"labels must be 0..{classes - 1}, or {classes} for the null class; "
                    f"found {low if low < 0 else high}"
                )


def _hard(labels_B: Tensor, null: int) -> tuple[Tensor, Tensor]:
    """Class ids [B, 1] (0 standing in where the gate is closed) and weights [B, 1] in {0, 1}.

    A negative id becomes `null`, which is out of range as an index, where it would count from the end of a table.
    """
    open_B = labels_B != null
    classes_B = torch.where(open_B, labels_B, 0).long()
    return torch.where(classes_B < 0, null, classes_B).unsqueeze(1), open_B.unsqueeze(1)


def _soft(weight_BC: Tensor) -> tuple[Tensor, Tensor]:
    """The classes with a weight other than 0, ascending, [B, M] with their weights; M is the most any sample has.

    Only these are computed: a class of weight 0 gets exactly zero gradient, and classes added later change no bit.
    A weight of 0 gets zero gradient too, also where it stands in to fill a row of M.
    """
    used = weight_BC != 0
    most = max(1, int(used.sum(1).max()))
    classes = torch.argsort(used.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    weight_BM = weight_BC.gather(1, classes)
    return classes, torch.where(weight_BM != 0, weight_BM, 0.0)


def _check_present(table: GatheredTable, slots: Tensor, wanted: Tensor) -> None:
    if _may_look(slots) and bool((slots == table.ids.numel()).any()):
        absent = sorted(set(wanted[slots == table.ids.numel()].tolist()))
        raise ValueError(
            f"rows= hold {table.present.tolist()} but this batch needs {absent}: gather the labels of every batch "
            "that the step will see"
        )


def _may_look(labels: Tensor) -> bool:
    """Whether values can be read without a device sync or a graph break."""
    return labels.device.type == "cpu" and not torch.compiler.is_compiling()
