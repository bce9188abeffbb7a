"""`KindConfig`: how a model is made decomposable. Values only; `convert.py` acts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Rank = int | float | Sequence[int]
"""An int, a share of the width min(I, O) (a float in (0, 1)), or one int for each part of a fused matrix."""


@dataclass(frozen=True, kw_only=True)
class KindConfig:
    """How to make a model decomposable (names: DESIGN section 11; every default is ours).

    num_classes: classes with a label of their own; the null class is the label `num_classes`.
    learngene_rank, tailor_rank: N_G, and N_T of each class: a `Rank`, or {module name pattern: Rank}.
    targets: ``"paper"``, ``"paper+adaln"`` (backbones of the table in `targets.py`), or module name patterns
        (``fnmatch``: ``blocks.*.attn.proj``).
    fused: {pattern: parts} for matrices that hold several (qkv: 3); None takes the backbone's own.
    class_rows: patterns of ``nn.Embedding`` label tables with a row a class; None takes the backbone's own.
    label_argument: name of the forward's argument that carries the labels; None takes the backbone's own; "" for a
        module that has none (open the gate by hand: ``with model.gate(y)``).
    gate_map: tailor index of each class, when classes share tailors; None: each class its own.
    init: ``"random"`` replaces the dense weights by fresh components of the same variance; ``"svd"`` keeps them: the
        learngene holds their best rank-N_G part and tailors start at zero; None is "random" for a freshly
        initialised DiT of ours and a refusal for a model whose weights were loaded, or that cannot tell.
    """

    num_classes: int
    learngene_rank: Rank | Mapping[str, Rank]
    tailor_rank: Rank | Mapping[str, Rank]
    targets: str | Sequence[str] = "paper"
    fused: Mapping[str, int] | None = None
    class_rows: Sequence[str] | None = None
    label_argument: str | None = None
    gate_map: Sequence[int] | None = None
    init: Literal["random", "svd"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.num_classes, bool) or not isinstance(self.num_classes, int) or self.num_classes < 1:
            raise ValueError(f"num_classes must be a whole number of at least 1, got {self.num_classes!r}")
        if self.init not in (None, "random", "svd"):
            raise ValueError(f"init must be 'random', 'svd' or None, got {self.init!r}")
        if self.gate_map is not None:
            self._check_gate_map(list(self.gate_map))
        if not self.targets:
            raise ValueError("targets must name at least one pattern, or be 'paper' or 'paper+adaln'")

    def _check_gate_map(self, gate_map: list[int]) -> None:
        if len(gate_map) != self.num_classes:
            raise ValueError(f"gate_map must name a tailor for each of {self.num_classes} classes, got {len(gate_map)}")
        whole = all(isinstance(tailor, int) and not isinstance(tailor, bool) for tailor in gate_map)
        if not whole or sorted(set(gate_map)) != list(range(max(gate_map) + 1)):
            raise ValueError("gate_map must number the tailors 0, 1, 2, ... without a gap")

    @property
    def tailor_of(self) -> list[int]:
        """Tailor index of each class."""
        return list(range(self.num_classes)) if self.gate_map is None else list(self.gate_map)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def resolve_rank(rank: Rank, parts: int, width: int, *, what: str, name: str) -> tuple[int, ...]:
    """The rank of each part of target `name`, checked against its width min(I, O/parts)."""
    if isinstance(rank, Sequence):
        ranks = tuple(rank)
        if len(ranks) != parts:
            raise ValueError(f"{what} of {name} has {len(ranks)} entries for {parts} parts")
    else:
        if isinstance(rank, float):
            if not 0.0 < rank < 1.0:
                raise ValueError(f"{what} as a share of the width must lie between 0 and 1, got {rank} for {name}")
            rank = max(1, round(rank * width))
        ranks = (rank,) * parts
    for value in ranks:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{what} must be at least 1, got {value!r} for {name}")
        if value > width:
            raise ValueError(f"{what} {value} is more than {name} can have: at most min(in, out) = {width}")
    return ranks
