"""What a model costs before it is built: parameters, multiply-adds and bytes of any choice of ranks, exactly.

Numbers: a component of an [O, I] matrix is I + O + 1 numbers behind a gate (u, v, s) and I + O in a plain thin pair (s
folded in); a dense matrix I O. Multiply-adds are those of the matrix products and convolutions in one forward of one
sample, guidance not counted (it runs two). Tailors are multiplied CHUNK components at a time, zeros included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kindgene.core.pieces import State
from kindgene.core.product import CHUNK
from kindgene.pool.backbones import TABLE, build_backbone, example_inputs
from kindgene.pool.config import PoolConfig
from kindgene.pool.parts import Part

INT8_ROW_BYTES = 5
"""What torchao keeps with each output row of an int8 matrix: a float32 scale and an int8 zero point (always 0)."""

Rank = int | None
"""Components kept of a part; None: the dense matrix."""


@dataclass(frozen=True)
class Cost:
    """Of a static model: numbers stored, multiply-adds of a forward (None: not asked for), bytes of the numbers."""

    parameters: int
    macs: int | None
    bytes: int

    def to_dict(self) -> dict[str, int | None]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs of a pool's models of one form and these classes. `itemsize`: bytes a floating-point number is kept in.

    With `int8` (plain models) the targets' weights take a byte each, and INT8_ROW_BYTES an output row; matrices of one
    column stay as they are (`quantize.py`). Scales and zero points are no parameters: their number is that of the same
    model in another dtype.
    """

    config: PoolConfig
    learngene: State
    parts: Sequence[Part]
    num_classes: int
    gated: bool
    itemsize: int
    int8: bool = False
    backbone: nn.Module | None = None

    @property
    def tailors(self) -> int:
        """How many tailors there are behind the gate."""
        return len(self.parts[0].own) if self.parts else 0

    @property
    def counts_macs(self) -> bool:
        """Whether multiply-adds can be counted: the backbone's inputs are known."""
        return self.config.backbone in TABLE

    @cached_property
    def probe(self) -> Probe:
        """Rows of every target and multiply-adds outside the targets, counted on a dense backbone of meta tensors."""
        return probe_backbone(self.config, self.backbone)

    @cached_property
    def fixed(self) -> int:
        """Numbers outside the targets' matrices: their biases, all that is shared, label and null rows."""
        targets = {f"{target}.{factor}" for target in self.config.ranks for factor in "usv"}
        nulls = {f"{table}.null_row" for table in self.config.label_tables}
        left_out = targets if self.gated else targets | nulls
        shared = sum(value.numel() for key, value in self.learngene.items() if key not in left_out)
        return shared + self.num_classes * sum(self.learngene[key].numel() for key in nulls)

    def learngene_numbers(self, part: Part, rank: Rank) -> int:
        """Numbers that a part's learngene (merged: its whole matrix) takes at a rank."""
        if rank is None:
            return part.inputs * part.outputs
        return rank * (part.inputs + part.outputs + int(self.gated))

    def learngene_bytes(self, part: Part, rank: Rank) -> int:
        """Bytes of the same numbers."""
        if not self.int8:
            return self.learngene_numbers(part, rank) * self.itemsize
        if rank is None:
            return self._int8_bytes(part.outputs, part.inputs)
        return self._int8_bytes(rank, part.inputs) + self._int8_bytes(part.outputs, rank)

    def _int8_bytes(self, rows: int, columns: int) -> int:
        return rows * (columns + INT8_ROW_BYTES) if columns > 1 else rows * self.itemsize

    def learngene_macs(self, part: Part, rank: Rank) -> int:
        """Multiply-adds of the same."""
        size = part.inputs * part.outputs if rank is None else rank * (part.inputs + part.outputs)
        return self.probe.rows[part.target] * size

    def tailor_numbers(self, part: Part, rank: int) -> int:
        """Numbers that all tailors of a part take at a rank."""
        return self.tailors * rank * (part.inputs + part.outputs + 1)

    def tailor_macs(self, part: Part, rank: int) -> int:
        """Multiply-adds of one sample's tailor, in whole chunks."""
        return self.probe.rows[part.target] * -(-rank // CHUNK) * CHUNK * (part.inputs + part.outputs)

    def total(self, ranks: Sequence[Rank], tailor_ranks: Sequence[int], *, macs: bool = True) -> Cost:
        """The whole model's cost: a rank a part, in the order of `parts`; `tailor_ranks` is empty when merged."""
        own = 0
        if self.gated:
            own = sum(self.tailor_numbers(p, rank) for p, rank in zip(self.parts, tailor_ranks, strict=True))
        shared = sum(self.learngene_numbers(p, rank) for p, rank in zip(self.parts, ranks, strict=True))
        numbers = self.fixed + shared + own
        size = (self.fixed + own) * self.itemsize
        size += sum(self.learngene_bytes(p, rank) for p, rank in zip(self.parts, ranks, strict=True))
        return Cost(numbers, self._macs(ranks, tailor_ranks) if macs else None, size)

    def _macs(self, ranks: Sequence[Rank], tailor_ranks: Sequence[int]) -> int:
        count = self.probe.fixed_macs
        count += sum(self.learngene_macs(part, rank) for part, rank in zip(self.parts, ranks, strict=True))
        # The parts of a fused matrix are multiplied together: all at the widest's rank.
        widest: dict[str, int] = {}
        for part, rank in zip(self.parts, tailor_ranks, strict=True) if self.gated else ():
            widest[part.target] = max(rank, widest.get(part.target, 0))
        return count + sum(self.tailor_macs(part, widest[part.target]) for part in self.parts if widest)


@dataclass(frozen=True)
class Probe:
    """`rows`: rows (samples times tokens) that each target multiplies for one sample; `fixed_macs`: all the rest."""

    rows: Mapping[str, int]
    fixed_macs: int


def probe_backbone(config: PoolConfig, backbone: nn.Module | None = None) -> Probe:
    """Counts one forward of one sample through the plain dense backbone, without computing it (meta tensors).

    Raises ValueError for a backbone that is not in the table of `backbones.py`: its inputs are not known.
    """
    with torch.device("meta"):
        module = build_backbone(
            config.backbone, config.backbone_config, ["class"], config.label_tables, backbone, dtype=torch.float32
        ).to("meta")
    inputs = example_inputs(config.backbone, module, device="meta")
    rows: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            rows[name] = rows.get(name, 0) + arguments[0].shape[:-1].numel()

        return module.get_submodule(name).register_forward_pre_hook(hook)

    handles = [count(name) for name in config.ranks]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module.eval()(**inputs)
    for handle in handles:
        handle.remove()
    targets = sum(rows[name] * module.get_parameter(f"{name}.weight").numel() for name in config.ranks)
    return Probe(rows, int(counter.get_total_flops()) // 2 - targets)
