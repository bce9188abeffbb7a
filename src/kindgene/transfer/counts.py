"""How many numbers a strategy with a rank trains, from shapes alone: no model is built. The tests hold it to models.

N classes, D label row, K rank; a matrix [O, I] of p parts. A tailor is p K (I + O/p + 1) numbers a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool
from kindgene.transfer.adapters import ADAPTERS
from kindgene.transfer.new_classes import LABEL_TABLE, POSITIONS, Matrix, Targets, matrices


def adapter(method: str, dense: DiT, targets: Targets, classes: int, rank: int) -> int:
    """Of peft's methods: the adapters, and the whole label table, its null row too."""
    numbers = ADAPTERS[method].numbers
    return sum(numbers(matrix, rank) for matrix in matrices(dense, targets)) + (classes + 1) * _label_row(dense)


def class_lora(dense: DiT, targets: Targets, classes: int, rank: int) -> int:
    """Of per-class LoRA: a tailor and a label row for each class."""
    return classes * (_tailor(matrices(dense, targets), rank) + _label_row(dense))


def kind(pool: Pool, classes: int, rank: int) -> int:
    """Of KIND: a tailor and its label rows for each class."""
    rows = sum(pool.learngene[f"{table}.null_row"].numel() for table in pool.config.label_tables)
    return classes * (_tailor(pool_matrices(pool), rank) + rows)


def kind_null_tailor(pool: Pool, classes: int, rank: int) -> int:
    """Of KIND with a null tailor: that of one class more."""
    return kind(pool, classes + 1, rank)


def kind_everything(pool: Pool, classes: int, rank: int) -> int:
    """Of KIND with everything trained: the same, and all that is shared."""
    return kind(pool, classes, rank) + sum(value.numel() for key, value in pool.learngene.items() if key != POSITIONS)


def pool_matrices(pool: Pool) -> list[Matrix]:
    """The shapes of a pool's targets."""
    shapes = []
    for target, ranks in pool.config.ranks.items():
        outputs, inputs = (pool.learngene[f"{target}.{factor}"].shape[1] for factor in "uv")
        shapes.append(Matrix(inputs, outputs * len(ranks), len(ranks)))
    return shapes


def tailor_ranks(shapes: Sequence[Matrix]) -> Sequence[int]:
    """The tailor ranks that all of these matrices can have, ascending."""
    return range(1, min(min(shape.inputs, shape.part_outputs) for shape in shapes) + 1)


def _tailor(shapes: Sequence[Matrix], rank: int) -> int:
    return sum(shape.parts * rank * (shape.inputs + shape.part_outputs + 1) for shape in shapes)


def _label_row(dense: DiT) -> int:
    table: Tensor = dense.get_parameter(LABEL_TABLE)
    return table.shape[1]
