"""The figures of a benchmark as Markdown: bars beside what was measured, why some are missed, then everything."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from kindgene.benchmarks.bars import Bar, bars, count

Figures = Mapping[str, Any]


def benchmark_table(result: Mapping[str, Any]) -> str:
    """Markdown of `run_benchmark`'s result."""
    figures = result["figures"]
    found = bars(figures, result["seconds"] if result["complete"] else None)
    lines = ["# Speed", "", _provenance(result)]
    if found:
        lines += ["", "## Bars", "", *_table(("bar", "asked", "measured", "reached"), [bar.cells for bar in found])]
    missed = [bar for bar in found if not bar.reached]
    if missed:
        lines += ["", "## Bars that are missed", "", *_missed(missed)]
    if "roofline" in figures:
        lines += _rooflines(figures)
    lines += ["", "## All figures", *_steps(figures), *_times(result), *_rest(result), *_memory(figures)]
    if "gpu" in figures:
        lines += _gpu_tables(figures["gpu"])
    return "\n".join(lines) + "\n"


def _provenance(result: Mapping[str, Any]) -> str:
    """What was measured, on what, how long it took."""
    machine, sizes = result["machine"], result["sizes"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    shapes = ", ".join(
        f"{shape['preset']} (N_G {shape['learngene_rank']}, N_T {shape['tailor_rank']}, batch {shape['batch']})"
        for shape in sizes["shapes"]
    )
    seeds = f"seeds {sizes['weight_seed']} (weights) and {sizes['batch_seed']} (batches)"
    took = ", ".join(f"{part} {seconds:,.0f} s" for part, seconds in result["part_seconds"].items())
    return _filled(
        f"{result['date']}; {machine['cpu']}, {count(machine['cpus'], 'core', 'cores')}, {machine['system']}; "
        f"{count(result['threads'], 'thread', 'threads')}; {result['clock']}, medians of "
        f"{count(sizes['repeats'], 'round', 'rounds')} in which what is compared takes turns. Float32, "
        f"{count(sizes['depth'], 'block', 'blocks')} of {shapes}; {count(sizes['classes'], 'class', 'classes')}; "
        f"targets: the paper's and the adaLN; {seeds}. "
        f"The benchmark took {result['seconds']:,.0f} s: {took}. {versions}."
    )


def _missed(missed: Sequence[Bar]) -> list[str]:
    """A paragraph for bars that one thing explains: by how much each is missed, then what it is, and what to try."""
    lines = []
    for (made_of, next_), group in groupby(missed, lambda bar: (bar.made_of, bar.next)):
        told = " ".join(
            f"**{bar.what}**: {bar.cells[2]} where {bar.cells[1]} is asked, {bar.missed_by}"
            + (f"; at the roofline it would be {bar.limit:.2f}." if bar.limit is not None else ".")
            for bar in group
        )
        lines.append(_filled(f"- {told} {made_of}".rstrip() + f" Next: {next_}."))
    return lines


def _rooflines(figures: Figures) -> list[str]:
    """The rates of the machine; of every step and forward the operations and bytes, and the least time they take."""
    found = figures["roofline"]
    rates = {name: f"{rate / 1e9:,.1f}" for name, rate in found["rates"].items()}
    explained = _filled(
        f"This machine, in this run: {rates['products']} GFLOP/s in the product of a dense layer, "
        f"{rates['thin_products']} in a pair of the learngene's rank, {rates['copy']} GB/s read and written by a copy, "
        f"{rates['sha256']} GB/s of SHA-256. Operations are counted (a multiply-add is two), bytes as if nothing "
        "stayed in a cache. The roofline is the longer of the two for each operation that torch runs, summed; beyond "
        "it are products that run slower, allocation and Python. Below 1 caches helped."
    )
    lines = ["", "## Roofline", "", explained]
    for part, title in (
        ("steps", "forward and backward of a step"),
        ("recombined", "forward of a recombined model"),
        ("mixed", "forward of a mixed batch"),
    ):
        if part in found:
            times = _measured(figures, part)
            rows = [
                [
                    way,
                    f"{work['operations'] / 1e9:,.3g} GFLOP",
                    f"{work['bytes'] / 1e6:,.0f} MB",
                    *(_ms(work[key]) for key in ("arithmetic_seconds", "memory_seconds", "seconds")),
                    _ms(times[way]),
                    f"{times[way] / work['seconds']:.2f}",
                ]
                for way, work in found[part].items()
            ]
            head = ("operations", "bytes", "arithmetic", "memory", "roofline", "measured", "measured / roofline")
            lines += ["", *_table((title, *head), rows)]
    return lines


def _measured(figures: Figures, part: str) -> dict[str, float]:
    """Seconds of each way of a part whose work was counted."""
    if part != "steps":
        return dict(figures[part])
    return {way: times["forward_backward"] for way, times in next(iter(figures["steps"].values())).items()}


def _steps(figures: Figures) -> list[str]:
    lines = []
    for shape, ways in figures.get("steps", {}).items():
        dense = ways.get("dense", next(iter(ways.values())))
        rows = [
            [
                way,
                *(_ms(times[what]) for what in ("forward_backward", "whole")),
                *(f"{times[what] / dense[what]:.3f}" for what in ("forward_backward", "whole")),
            ]
            for way, times in ways.items()
        ]
        lines += ["", *_table((f"{shape}, a step", "forward + backward", "whole", "ratio", "ratio, whole"), rows)]
    return lines


def _times(result: Mapping[str, Any]) -> list[str]:
    figures, lines = result["figures"], list[str]()
    mixed = count(result["sizes"]["mixed_classes"], "class", "classes")
    for part, title, unit in (
        ("growth", "classes", "step"),
        ("recombined", "forward of a recombined model", "time"),
        ("mixed", f"forward of a batch of {mixed}, a sample each", "time"),
    ):
        if part in figures:
            times = figures[part]
            first = times["dense DiT"] if part == "recombined" else next(iter(times.values()))
            named = {f"{int(name):,}" if part == "growth" else name: value for name, value in times.items()}
            rows = [[name, _ms(value), f"{value / first:.3f}"] for name, value in named.items()]
            lines += ["", *_table((title, unit, "ratio"), rows)]
    return lines


def _memory(figures: Figures) -> list[str]:
    """What training adds to a process at most; a shape a column."""
    if "memory" not in figures:
        return []
    shapes = figures["memory"]
    ways = next(iter(shapes.values()))
    rows = [[way, *(_beside_dense(found, way) for found in shapes.values())] for way in ways]
    return ["", *_table(("peak memory of training (against dense)", *shapes), rows)]


def _beside_dense(found: Mapping[str, int], way: str) -> str:
    ratio = f" ({found[way] / found['dense']:.2f})" if "dense" in found else ""
    return f"{found[way] / 1e6:,.0f} MB{ratio}"


def _rest(result: Mapping[str, Any]) -> list[str]:
    figures, sizes, lines = result["figures"], result["sizes"], list[str]()
    sampled = f"sampling in {count(sizes['sampling_steps'], 'step', 'steps')}"
    for part, title, unit in (
        ("sampling", f"{sampled}, {count(sizes['depth'], 'block', 'blocks')}", "images/s"),
        ("storage", "files, by the time that passes", "GB/s"),
    ):
        if part in figures:
            rows = [[name, f"{value:,.3g}"] for name, value in figures[part].items()]
            lines += ["", *_table((title, unit), rows)]
    if "start" in figures:
        rows = [[name, *(f"{found[key]:.3f} s" for key in ("wall", "cpu"))] for name, found in figures["start"].items()]
        lines += ["", *_table(("a process from start to end", "time that passes", "work"), rows)]
    return lines


def _gpu_tables(gpu: Mapping[str, Any]) -> list[str]:
    """The step with its floor, every layer, and sampling; the device in the titles."""
    dense = gpu["step"]["dense"]["seconds"]
    steps = [
        [
            way,
            f"{1000 * found['seconds']:,.2f} ms",
            f"{found['seconds'] / dense:.3f}",
            f"{found['bytes'] * 1e-6:,.0f} MB" if "bytes" in found else "-",
        ]
        for way, found in gpu["step"].items()
    ]
    layers = [
        [
            f"{layer}, {way}",
            *(f"{1000 * times[what]:,.3f} ms" for what in ("forward", "both")),
            *(f"{times[what] / ways['dense'][what]:.3f}" for what in ("forward", "both")),
        ]
        for layer, ways in gpu["layers"].items()
        for way, times in ways.items()
    ]
    sampling = [[way, f"{value:,.3g}"] for way, value in gpu["sampling"].items()]
    title = f"{gpu['shape']} on {gpu['device']}"
    return [
        "",
        *_table((f"{title}, compiled step in bfloat16", "time", "ratio", "peak memory"), steps),
        "",
        *_table((f"{title}, a layer", "forward", "with backward", "ratio", "ratio, with backward"), layers),
        "",
        *_table((f"{title}, guided sampling", "images/s"), sampling),
    ]


def _filled(text: str) -> str:
    """A paragraph or an item of a list, in lines of 120 characters."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _ms(seconds: float) -> str:
    """To three digits, so that tiny sizes show something."""
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
