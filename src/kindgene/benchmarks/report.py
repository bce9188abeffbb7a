"""The figures of a benchmark as Markdown: bars beside what was measured, then everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[tuple[str, str, str, str]]


def bars(figures: Mapping[str, Any]) -> Rows:
    """(what, asked, measured, reached or not) for each bar whose figures are there; of the first shape."""
    rows: Rows = []

    def at_most(what: str, most: float, value: float) -> None:
        rows.append((what, f"<= {most:.2f}", f"{value:.3f}", "yes" if value <= most else "no"))

    def at_least(what: str, least: float, value: float) -> None:
        rows.append((what, f">= {least:.2f}", f"{value:.2f}", "yes" if value >= least else "no"))

    if "steps" in figures:
        shape, ways = next(iter(figures["steps"].items()))
        ours, dense = ways["decomposable"], ways["dense"]
        at_most(
            f"{shape} step, forward and backward, against dense",
            0.42,
            ours["forward_backward"] / dense["forward_backward"],
        )
        at_most(f"{shape} step with the optimizer, against dense", 0.45, ours["whole"] / dense["whole"])
        masked = ways["masked full rank"]
        at_most(
            f"{shape} step against the full rank masked",
            0.30,
            ours["forward_backward"] / masked["forward_backward"],
        )
    if "growth" in figures:
        times = list(figures["growth"].items())
        at_most(f"a step of {times[-1][0]} classes against one of {times[0][0]}", 1.10, times[-1][1] / times[0][1])
    if "mixed" in figures:
        mixed = figures["mixed"]
        at_least("a mixed batch: peft's time / ours", 5.0, mixed["peft mixed batch"] / mixed["gated"])
    if "recombined" in figures:
        found = figures["recombined"]
        at_most("one class, merged, dense, against the dense DiT", 1.02, found["one class, dense"] / found["dense DiT"])
        at_most(
            "one class, merged, factored, against the dense DiT",
            0.50,
            found["one class, factored"] / found["dense DiT"],
        )
    if "gpu" in figures:
        step = {way: times["seconds"] for way, times in figures["gpu"]["step"].items()}
        floor = step["targets free"] / step["dense"]
        what = f"{figures['gpu']['shape']} step on a GPU, bfloat16, against dense (floor {floor:.3f})"
        at_most(what, 0.60, step["decomposable"] / step["dense"])
    if "storage" in figures:
        found = figures["storage"]
        at_least("saving against a plain safetensors file", 0.5, found["save"] / found["plain save"])
        at_least("saving against a plain file, flushed", 0.5, found["save"] / found["plain save, flushed"])
        at_least("opening against a plain safetensors file", 0.5, found["open"] / found["plain load"])
        at_least("opening against a plain file, hashed", 0.5, found["open"] / found["plain load, hashed"])
    return rows


def benchmark_table(result: Mapping[str, Any]) -> str:
    """Markdown of `run_benchmark`'s result."""
    figures, machine = result["figures"], result["machine"]
    lines = _table(("bar", "asked", "measured", "reached"), [list(row) for row in bars(figures)])
    for shape, ways in figures.get("steps", {}).items():
        dense = ways["dense"]
        rows = [
            [
                way,
                *(f"{1000 * times[what]:,.0f} ms" for what in ("forward_backward", "whole")),
                *(f"{times[what] / dense[what]:.3f}" for what in ("forward_backward", "whole")),
            ]
            for way, times in ways.items()
        ]
        lines += ["", *_table((f"{shape}, a step", "forward + backward", "whole", "ratio", "ratio, whole"), rows)]
    for part, title, unit in (
        ("growth", "classes", "step"),
        ("recombined", "forward of a recombined model", "time"),
        ("mixed", "forward, 32 classes", "time"),
    ):
        if part in figures:
            first = figures[part]["dense DiT"] if part == "recombined" else next(iter(figures[part].values()))
            rows = [[name, f"{1000 * value:,.0f} ms", f"{value / first:.3f}"] for name, value in figures[part].items()]
            lines += ["", *_table((title, unit, "ratio"), rows)]
    for part, title, unit, scale in (
        ("memory", "peak memory of training", "MB", 1e-6),
        ("storage", "files, by the time that passes", "GB/s", 1.0),
        ("sampling", "sampling, two blocks", "images/s", 1.0),
    ):
        if part in figures:
            rows = [[name, f"{value * scale:,.3g}"] for name, value in figures[part].items()]
            lines += ["", *_table((title, unit), rows)]
    if "gpu" in figures:
        lines += _gpu_tables(figures["gpu"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += [
        "",
        f"{result['date']}, {machine['cpu']}, {machine['cpus']} cores, {machine['system']}, "
        f"{result['threads']} thread(s), {result['clock']}; {versions}",
    ]
    return "\n".join(lines) + "\n"


def _gpu_tables(gpu: Mapping[str, Any]) -> list[str]:
    """The step with its floor, every layer, and sampling; the device in the titles."""
    dense = gpu["step"]["dense"]["seconds"]
    steps = [
        [
            way,
            f"{1000 * found['seconds']:,.2f} ms",
            f"{found['seconds'] / dense:.3f}",
            f"{found['bytes'] * 1e-6:,.0f}" if "bytes" in found else "-",
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
        *_table((f"{title}, compiled step in bfloat16", "time", "ratio", "MB"), steps),
        "",
        *_table((f"{title}, a layer", "forward", "with backward", "ratio", "ratio, with backward"), layers),
        "",
        *_table((f"{title}, guided sampling", "images/s"), sampling),
    ]


def _table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
