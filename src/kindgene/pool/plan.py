"""`Plan`: which components of which matrix a recombined model keeps: a value to read, to save and to use again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from kindgene.files import read_json, write_json
from kindgene.pool.config import PoolConfig
from kindgene.pool.cost import Cost, Rank
from kindgene.pool.names import check_class_names, known_names

FORMAT = "kindgene-plan"
FORMAT_VERSION = 1

Form = Literal["gated", "merged", "dense"]
FORMS: tuple[Form, ...] = ("gated", "merged", "dense")
DTYPES = ("float32", "float64", "bfloat16", "float16", "int8")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recombined model, described.

    `ranks`: target -> components kept of each part (None: the dense matrix); in the merged form learngene and tailor
    count together. `tailor_ranks`: the same of every tailor, {} when merged. `dtype` is what the model is kept in.
    `loss` says what the plan is expected to cost in quality, by `measure`: ``"energy"``, the largest share of a
    matrix's energy that is dropped, or ``"output"``, the relative squared change of the model's output on calibration
    data, to first order. `budget` holds the limits asked for. `latency_ms` was measured on `device`; `error` is the
    measured change of the output, relative to its norm, by a dtype other than the pool's (int8: the targets' weights).
    """

    learngene_id: str
    classes: tuple[str, ...]
    form: Form
    dtype: str
    ranks: Mapping[str, tuple[Rank, ...]]
    tailor_ranks: Mapping[str, tuple[int, ...]]
    cost: Cost
    loss: float
    measure: str
    budget: Mapping[str, float] = field(default_factory=dict)
    latency_ms: float | None = None
    device: str | None = None
    error: float | None = None

    def __str__(self) -> str:
        cost = self.cost
        few = ", ".join(self.classes[:10])
        more = f" and {len(self.classes) - 10} more" if len(self.classes) > 10 else ""
        count = "1 class" if len(self.classes) == 1 else f"{len(self.classes)} classes"
        lines = [
            f"{self.form} model of {count} in {self.dtype}: {few}{more}",
            f"{cost.parameters:,} parameters, {cost.bytes:,} bytes"
            + ("" if cost.macs is None else f", {cost.macs:,} multiply-adds a forward")
            + ("" if self.latency_ms is None else f", {self.latency_ms:.2f} ms a forward on {self.device}"),
            f"expected loss {self.loss:.3g} ({self.measure})"
            + ("" if self.error is None else f", measured error of {self.dtype} {self.error:.2g} of the output"),
        ]
        width = max(map(len, self.ranks))
        for target, ranks in self.ranks.items():
            kept = " ".join("dense" if rank is None else str(rank) for rank in ranks)
            own = self.tailor_ranks.get(target)
            lines.append(f"  {target:<{width}}  {kept}" + ("" if own is None else f"  + {' '.join(map(str, own))}"))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any, source: str = "plan") -> Plan:
        """Reads what `to_json` wrote. Raises ValueError naming the source and what is wrong with it."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"{source} is not a plan (its 'format' is not {FORMAT!r})")
        if value.get("format_version") != FORMAT_VERSION:
            found = value.get("format_version")
            raise ValueError(f"{source} is a plan of format version {found!r}; this kindgene reads {FORMAT_VERSION}")
        given = {key: entry for key, entry in value.items() if key not in ("format", "format_version")}
        try:
            plan = cls(**{**given, "cost": Cost(**given["cost"]), "classes": check_class_names(given["classes"])})
            ranks = {target: tuple(parts) for target, parts in plan.ranks.items()}
            tailor_ranks = {target: tuple(parts) for target, parts in plan.tailor_ranks.items()}
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{source} is not a whole plan: {error}") from error
        if plan.form not in FORMS or plan.dtype not in DTYPES:
            raise ValueError(f"{source}: form {plan.form!r} or dtype {plan.dtype!r} is none that this kindgene knows")
        return replace(plan, ranks=ranks, tailor_ranks=tailor_ranks)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads a plan's JSON file. Raises ValueError naming the file and what is wrong with it."""
        return cls.from_json(read_json(path), str(path))

    def check(self, config: PoolConfig) -> None:
        """Raises ValueError unless the plan was made for this pool: its learngene, its classes, ranks that it has."""
        if self.learngene_id != config.learngene_id:
            raise ValueError(
                f"this plan was made for the learngene {self.learngene_id[:16]}, the pool has "
                f"{config.learngene_id[:16]}: make a new plan"
            )
        check_dtype(self.form, self.dtype)
        names = known_names(config.classes, self.classes)
        if self.form != "gated" and len(names) != 1:
            raise ValueError(f"this plan is of form {self.form!r} and names {len(names)} classes; it can hold one")
        own = [config.tailor_ranks_of(name) for name in names]
        gated = self.form == "gated"
        if self.ranks.keys() != config.ranks.keys() or (gated and self.tailor_ranks.keys() != config.ranks.keys()):
            raise ValueError("this plan does not name the targets that the pool has")
        for target, parts in config.ranks.items():
            most = [max(r[target][index] for r in own) for index in range(len(parts))]
            whole = parts if gated else [rank + tailor for rank, tailor in zip(parts, most, strict=True)]
            _check_ranks(target, self.ranks[target], whole)
            if gated:
                _check_ranks(target, cast("tuple[Rank, ...]", self.tailor_ranks[target]), most)


def check_dtype(form: Form, dtype: str) -> None:
    """Raises ValueError for a dtype that is not known, or that models of this form cannot be kept in."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dtype == "int8" and form == "gated":
        raise ValueError("dtype='int8' is for plain models, whose layers torchao knows: use form='merged' or 'dense'")


def _check_ranks(target: str, ranks: tuple[Rank, ...], most: Any) -> None:
    if len(ranks) != len(most):
        raise ValueError(f"this plan has {len(ranks)} ranks for {target}, which has {len(most)} parts")
    for rank, limit in zip(ranks, most, strict=True):
        if rank is not None and (type(rank) is not int or not 1 <= rank <= limit):
            raise ValueError(f"this plan keeps {rank!r} components of {target}; the pool has {limit}")
