"""kindgene bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kindgene.cli import options

_PARTS = "start, steps, growth, recombined, mixed, roofline, sampling, storage, memory, gpu"
EXAMPLE = "kindgene bench --part steps --part growth"


def run(
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"{_PARTS}; all if not given. Repeat it for more."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for performance.md and performance.json.")] = Path("runs/bench"),
    size: Annotated[str, typer.Option(help="full (minutes) or tiny (seconds, to try the machinery).")] = "full",
    threads: Annotated[int, typer.Option(help="Threads to compute with.", callback=options.at_least_one)] = 1,
) -> None:
    """Measure speed side by side: training steps, growth with classes, recombined models, files.

    What is compared takes turns, and the table holds ratios of medians. The part roofline says of what else is measured
    what the machine could do at best. The part gpu needs a CUDA device, and is left out where there is none.
    """
    import torch

    from kindgene.benchmarks.report import benchmark_table
    from kindgene.benchmarks.run import PARTS, run_benchmark, write_benchmark

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result = run_benchmark(tuple(part or PARTS), size, lambda name: typer.echo(f"measuring {name} ...", err=True))
    finally:
        torch.set_num_threads(before)
    table = benchmark_table(result)
    write_benchmark(out, result, table)
    typer.echo(table)
    typer.echo(f"table and JSON: {out}")
