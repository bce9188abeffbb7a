"""Two processes that train many classes, replicated and with tailors on their ranks: bytes, memory, time of a step.

Launches itself under torchrun (gloo, CPU), once for each way and number of classes, each in processes of its own, and
writes what the processes counted. Bytes are those that are summed over processes in a step; memory is the largest
resident set of a process after its steps, less that of a process that trains nothing; seconds are the median of a step.
Random images, as no figure depends on them.

Example: python benchmarks/tailor_parallel.py --json docs/results/tailor-parallel.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kindgene import ArrayDataset, DiT, KindConfig, TrainConfig, make_decomposable, train
from kindgene._version import __version__
from kindgene.files import write_json
from kindgene.progress import NoProgress
from kindgene.training.placement import Placement

WAYS = ("data", "tailor")


class Clock(NoProgress):
    """When each step was over."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def update(self, done: int, *figures: float | None) -> None:
        self.times.append(time.perf_counter())


def work(way: str, classes: int, options: argparse.Namespace) -> dict[str, Any]:
    """What one process does and counts."""
    torch.set_num_threads(1)
    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    labels = torch.arange(max(classes, options.batch_size)) % classes
    images = torch.rand(len(labels), 1, 8, 8) * 2 - 1
    data = ArrayDataset(images, labels, tuple(str(number) for number in range(classes)))
    before = resident()
    torch.manual_seed(0)
    dense = DiT.from_preset(
        "mini/2", num_classes=classes, hidden_size=options.width, depth=options.depth, num_heads=options.width // 32
    )
    kind = KindConfig(num_classes=classes, learngene_rank=options.width // 4, tailor_rank=4, targets="paper+adaln")
    own = Placement.for_data(range(classes), labels, size).tailors(rank) if way == "tailor" else None
    model = make_decomposable(dense, kind, torch.Generator().manual_seed(0), tailors=own)
    learngene = sum(parameter.nbytes for parameter in model.module.parameters() if parameter.requires_grad)
    row = sum(table.rows.shape[1] * table.rows.element_size() for table in model.bank.tables.values())
    summed = count_sums()
    clock = Clock() if rank == 0 else None
    config = TrainConfig(steps=options.steps, batch_size=options.batch_size, parallel=way)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        shared = [folder]
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        dist.broadcast_object_list(shared, 0)
        started = time.perf_counter()
        train(model, data, config, Path(shared[0]) / "run", progress=clock)
        dist.barrier()
    times = [] if clock is None else [after - at for at, after in zip(clock.times[1:], clock.times[2:], strict=False)]
    return {
        "learngene_bytes": learngene,
        "tailor_bytes": row,
        "summed_bytes_a_step": sum(summed) / options.steps,
        "memory_bytes": resident() - before,
        "seconds_a_step": statistics.median(times) if times else None,
        "seconds": time.perf_counter() - started,
    }


def count_sums() -> list[int]:
    """What torch sums over processes from here on, one number of bytes each."""
    counted: list[int] = []
    all_reduce = dist.all_reduce
    begin = torch.nn.parallel.DistributedDataParallel.__init__

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counted.append(tensor.nbytes)
        return all_reduce(tensor, *args, **kwargs)

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        begin(self, *args, **kwargs)
        self.register_comm_hook(None, allreduce_hook)  # sums by the function above

    dist.all_reduce = counting
    torch.nn.parallel.DistributedDataParallel.__init__ = watched  # type: ignore[method-assign]
    return counted


def resident() -> int:
    """Bytes of the largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def launch(way: str, classes: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training in two processes; the figures of the first, and the larger memory of the two."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
        sizes = [f"--{name}={getattr(options, name)}" for name in ("width", "depth", "steps")]
        sizes.append(f"--batch-size={options.batch_size}")
        told = subprocess.run(
            [*launcher, __file__, "--way", way, "--classes", str(classes), "--into", folder, *sizes],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
        )
        if told.returncode:
            raise SystemExit(told.stderr)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(2)]
    return {**found[0], "memory_bytes": max(one["memory_bytes"] for one in found)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| classes | way | summed a step | memory of a process | a step |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['classes']:,} | {row['way']} | {row['summed_bytes_a_step'] / 1e6:.1f} MB | "
            f"{row['memory_bytes'] / 1e6:,.0f} MB | {row['seconds_a_step']:.2f} s |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all, or, launched by itself, one of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 500, 2000])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way is not None:
        write_json(options.into / f"{os.environ['RANK']}.json", work(options.way, options.classes[0], options))
        return
    rows = []
    for classes in options.classes:
        for way in WAYS:
            rows.append({"classes": classes, "way": way, **launch(way, classes, options)})
            sys.stderr.write(f"{classes:,} classes, {way}: done\n")
    sys.stdout.write(table(rows) + "\n")
    if options.json is not None:
        facts = {"width": options.width, "depth": options.depth, "batch_size": options.batch_size}
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__}
        write_json(options.json, {"kindgene": __version__, **facts, "steps": options.steps, **machine, "rows": rows})


if __name__ == "__main__":
    main()
