"""What an inspection finds, as plain data (see `inspect_path.py`), and how many tailors it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kindgene.evaluation.history import History
from kindgene.evaluation.layers import Structure

MEASURED = 32
"""Without named classes at most so many tailors are read and compared, evenly spaced among all (ours)."""


@dataclass(frozen=True, kw_only=True)
class ClassFacts:
    """One class: the numbers of its tailor and label row, its tailor's ranks; of a pool also the tailor's file.

    `tailor_ranks` is one int where every part of every target has it, None in a plain model. `bytes` is None where the
    file is not here: a pool may be here in part, for the classes that are used.
    """

    parameters: int
    tailor_ranks: int | Mapping[str, Sequence[int]] | None
    file: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect_path` found.

    `canonical`: the components are in the pool's canonical form. `ranks`: target -> the learngene's rank in each part;
    in a plain DiT the rank of each thin pair, None where dense. `record` is what is known besides: of a pool
    `weights`, `generation`, `learngene_id`, `provenance`; of a run or checkpoint `step`, `steps`, `loss_first`,
    `loss_last`, `seconds`, and of a run `origin` where it says. `structures` is empty where nothing was measured; they
    name the tailors that were, out of `tailor_count`. `history` is that of a run whose log is here.
    """

    path: str
    kind: Literal["pool", "model", "run", "checkpoint"]
    backbone: str
    canonical: bool
    parameters: int
    learngene_parameters: int | None
    bytes: int
    ranks: Mapping[str, Sequence[int | None]]
    classes: dict[str, ClassFacts]
    tailor_count: int
    record: dict[str, Any]
    structures: list[Structure]
    history: History | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
