"""An inspection as text: what rich prints. Means over the matrices of one kind, or a line a matrix; all in the JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kindgene.evaluation.history_table import history_table
from kindgene.evaluation.inspection import ClassFacts, Inspection
from kindgene.evaluation.layers import ORTHOGONAL, Layer, Number, Spectrum, Structure, TailorSpectrum, mean

CLASSES = 40
"""So many classes are listed as text."""

_HEADINGS = {"ema": "Averaged weights (ema)", "raw": "Raw weights", "saved": "Weights"}
_SHORT = {"ema": "ema weights", "raw": "raw weights"}


def as_text(found: Inspection, every_layer: bool = False) -> Group:
    """Everything that fits a terminal: sizes, classes, and a table each for spectra, drift, and overlap with energy."""
    parts: list[RenderableType] = [_header(found)]
    if found.classes:
        parts.append(_classes(found))
    if found.history is not None and found.structures:  # a listing is of sizes alone
        parts.append(history_table(found.history))
    for structure in found.structures:
        parts.append(Text(_HEADINGS[structure.weights], style="bold"))
        groups = _groups(structure, every_layer)
        parts.append(_spectra(groups))
        if any(layer.cheaper_dense for layer in structure.layers):
            parts.append(Text("* would cost no more multiply-adds as a dense matrix\n"))
        if any(layer.shared.drift_u is not None for layer in structure.layers):
            parts.append(_drift(groups, structure, found.canonical))
        if structure.tailors:
            parts.append(_overlap(groups, structure))
    return Group(*parts)


def _header(found: Inspection) -> Text:
    record = found.record
    lines = [f"{found.kind} {found.path}"]
    if found.kind == "pool":
        identity = record["learngene_id"][:16]
        lines.append(
            f"{found.backbone}, {_SHORT[record['weights']]}, generation {record['generation']}, learngene {identity}"
        )
    elif found.kind == "model":
        count, null = record["num_classes"], "with" if record["null_row"] else "without"
        lines.append(f"{found.backbone}, {count} class{'es' if count != 1 else ''}, {null} a null class")
    else:
        lines.append(f"{found.backbone}, step {record['step']:,} of {record['steps']:,}, {record['seconds']:.0f} s")
        lines += _origin(record.get("origin", {}))
        if record["loss_first"] is not None:
            lines.append(f"loss {record['loss_first']:.4f} (first 50 steps) -> {record['loss_last']:.4f} (last 50)")
    size = f"{found.parameters:,} parameters, {_bytes(found.bytes)}"
    if found.learngene_parameters is not None:
        size += f": learngene {found.learngene_parameters:,}; {found.tailor_count:,} tailors, {_each(found)} each"
    lines.append(size)
    return Text("\n".join(lines) + "\n")


def _origin(origin: Mapping[str, Any]) -> list[str]:
    """``recipe folder-32, data photos, image size 32; 3 files skipped``: what a run says of where it comes from."""
    data = origin.get("data", {})
    facts = {"recipe": origin.get("recipe"), "pool": origin.get("pool"), "preset": origin.get("preset")}
    facts |= {"data": data.get("data"), "image size": data.get("image_size"), "VAE": data.get("vae")}
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    skipped = origin.get("skipped", {}).get("total", 0)
    return [told + (f"; {skipped:,} skipped (skipped.jsonl)" if skipped else "")] if told else []


def _each(found: Inspection) -> str:
    sizes = sorted({facts.parameters for facts in found.classes.values()}) or [0]
    return " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))


def _classes(found: Inspection) -> RenderableType:
    """The first classes: sizes; what their tailors' energy is where it was measured."""
    if found.tailor_count == 0:
        return Text(f"classes: {', '.join(list(found.classes)[:CLASSES])}{_more(found)}\n")
    share = {
        name: tailor.energy_share
        for structure in found.structures[:1]
        for tailor in structure.tailors
        for name in tailor.classes
    }
    columns: dict[str, Callable[[str, ClassFacts], str]] = {
        "N_T": lambda _, facts: _rank(facts),
        "parameters": lambda _, facts: f"{facts.parameters:,}",
        "bytes": lambda _, facts: "" if facts.bytes is None else _bytes(facts.bytes),
        "energy share": lambda name, _: _percent(share.get(name)),
    }
    listed = list(found.classes.items())[:CLASSES]
    cells = {head: [cell(name, facts) for name, facts in listed] for head, cell in columns.items()}
    shown = {head: column for head, column in cells.items() if any(column)}
    table = _table("class", *shown)
    for (name, _), *row in zip(listed, *shown.values(), strict=True):
        table.add_row(Text(name), *row)
    gone = sum(facts.bytes is None for facts in found.classes.values()) if found.kind == "pool" else 0
    measured = len(found.structures[0].tailors) if found.structures else found.tailor_count
    notes = [_more(found).lstrip(", ")] if _more(found) else []
    if gone:
        notes.append(f"{gone:,} of {len(found.classes):,} classes have no file here; the bytes above are those here")
    if measured < found.tailor_count:
        notes.append(f"{measured} of {found.tailor_count:,} tailors are measured below (--classes chooses others)")
    return Group(table, *(Text(note) for note in notes), Text())


def _more(found: Inspection) -> str:
    left = len(found.classes) - CLASSES
    return f", and {left:,} more classes (--json lists all)" if left > 0 else ""


def _rank(facts: ClassFacts) -> str:
    ranks = facts.tailor_ranks
    if isinstance(ranks, int):
        return str(ranks)
    return _span([rank for parts in (ranks or {}).values() for rank in parts])


def _groups(structure: Structure, every_layer: bool) -> dict[str, list[Layer]]:
    """What a line of a table is about."""
    groups: dict[str, list[Layer]] = {}
    for layer in structure.layers:
        groups.setdefault(layer.name if every_layer else layer.kind, []).append(layer)
    return groups


def _spectra(groups: dict[str, list[Layer]]) -> Table:
    tailors = any(layer.tailors for layers in groups.values() for layer in layers)
    heads = ["rank", "effective"]
    if tailors:
        heads = ["learngene:\nN_G", "effective", "tailors:\nN_T", "effective"]
    table = _table("spectra", "count", "out x in", *heads)
    for name, layers in groups.items():
        own = _ranks_of([layer.shared for layer in layers])
        if any(layer.cheaper_dense for layer in layers):
            own[0] += "*"
        sizes = sorted({(layer.outputs, layer.inputs) for layer in layers})
        size = ", ".join(f"{outputs} x {inputs}" for outputs, inputs in sizes)
        more = _ranks_of([tailor for layer in layers for tailor in layer.tailors]) if tailors else []
        table.add_row(name, str(len(layers)), size, *own, *more)
    return table


def _ranks_of(spectra: Sequence[Spectrum]) -> list[str]:
    return [_span([one.rank for one in spectra]), _decimal(mean([one.effective_rank for one in spectra]), 1)]


def _drift(groups: dict[str, list[Layer]], structure: Structure, canonical: bool) -> RenderableType:
    """Root mean square cosine of two components; one line where it is rounding alone."""
    if canonical or structure.largest_drift <= ORTHOGONAL:
        why = "; a pool is canonical, so orthonormal" if canonical else ""
        return Text(f"drift from orthogonality: {structure.largest_drift:.0e} at most{why}\n")
    heads = ["learngene:\nU", "V", "tailors:\nU", "V"] if structure.tailors else ["thin pairs:\nU", "V"]
    table = _table("drift", *heads, "random:\nU", "V")
    for name, layers in groups.items():
        spectra: list[Sequence[Spectrum]] = [[layer.shared for layer in layers]]
        if structure.tailors:
            spectra.append([tailor for layer in layers for tailor in layer.tailors])
        values = [mean([getattr(x, key) for x in some]) for some in spectra for key in ("drift_u", "drift_v")]
        random = [mean([1 / math.sqrt(getattr(layer, key)) for layer in layers]) for key in ("outputs", "inputs")]
        table.add_row(name, *(_decimal(value, 3) for value in (*values, *random)))
    return table


def _overlap(groups: dict[str, list[Layer]], structure: Structure) -> RenderableType:
    """Overlaps, how many times those of random spaces they are, and the tailors' share of energy."""
    heads = ("two tailors:\nU", "V", "learngene:\nU", "V", "energy\nshare")
    table = _table("overlap", *heads)
    for name, layers in groups.items():
        own = [tailor for layer in layers for tailor in layer.tailors]
        cells = [
            _beside(
                mean([getattr(layer.pairs, f"overlap_{side}") for layer in layers if layer.pairs]),
                mean([getattr(layer.pairs, f"random_{side}") for layer in layers if layer.pairs]),
            )
            for side in "uv"
        ]
        cells += [
            _beside(
                _mean(own, f"learngene_overlap_{side}"), mean([getattr(x, f"random_learngene_{side}") for x in layers])
            )
            for side in "uv"
        ]
        table.add_row(name, *cells, _percent(_mean(own, "energy_share")))
    closest = _closest(structure)
    return Group(
        table,
        Text("U: what they write, V: what they read. 1.0x: as much as random spaces"),
        *([Text(closest)] if closest else []),
        Text(),
    )


def _closest(structure: Structure) -> str:
    """The two tailors whose column spaces overlap most."""
    rows = structure.overlap_u
    found = [(value, i, j) for i, row in enumerate(rows) for j, value in enumerate(row[:i]) if value is not None]
    if not found:
        return ""
    value, i, j = max(found)
    first, second = (", ".join(structure.tailors[index].classes) for index in (j, i))
    return f"the closest two in U: {first!r} and {second!r}, {value:.3f}"


def _mean(tailors: Sequence[TailorSpectrum], key: str) -> Number:
    return mean([getattr(tailor, key) for tailor in tailors])


def _table(first: str, *others: str) -> Table:
    """Headings of one line stand at the bottom of those of two."""
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    lines = 1 + max(name.count("\n") for name in others)
    for name in (first, *others):
        heading = "\n" * (lines - 1 - name.count("\n")) + name
        table.add_column(heading, justify="left" if name is first else "right", overflow="fold")
    return table


def _span(values: Sequence[int]) -> str:
    return "-".join(str(value) for value in dict.fromkeys((min(values), max(values)))) if values else ""


def _beside(value: Number, random: Number) -> str:
    return _decimal(value, 3) if value is None or not random else f"{value:.3f} {value / random:4.1f}x"


def _decimal(value: Number, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: Number) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _bytes(count: int) -> str:
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
