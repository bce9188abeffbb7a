"""The whole benchmark: every part in turn, the figures as plain data, and the bars they are to reach."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kindgene.benchmarks.gpu import device_name, measure_gpu
from kindgene.benchmarks.inference import (
    MIXED,
    Forwards,
    make_pool,
    measure_forwards,
    measure_sampling,
    mixed_forwards,
    recombined_forwards,
)
from kindgene.benchmarks.models import BATCH_SEED, DEPTH, SHAPES, TINY, WEIGHT_SEED, Shape, batch_of
from kindgene.benchmarks.roofline import count_work, measure_rates, rooflines
from kindgene.benchmarks.start import measure_start
from kindgene.benchmarks.storage import measure_storage
from kindgene.benchmarks.training_step import WAYS, Step, build, measure_growth, measure_steps, peak_memory
from kindgene.files import write_json
from kindgene.pool.pool import Pool
from kindgene.training.environment import environment

CLASSES = 150
GROWTH = (10, 150, 1_000, 10_000)
GROWTH_SHAPE = Shape("DiT-S/4", 84, 1, 32)
GPU_SHAPE, GPU_DEPTH, GPU_REPEATS = Shape("DiT-B/4", 168, 4, 256), 12, 20
PARTS = ("start", "steps", "growth", "recombined", "mixed", "roofline", "sampling", "storage", "memory", "gpu")
FORWARDS = {"recombined": recombined_forwards, "mixed": mixed_forwards}
UNITS = {
    "start": "seconds of a process",
    "steps": "seconds",
    "growth": "seconds",
    "recombined": "seconds",
    "mixed": "seconds",
    "roofline": "as the names say; rates: float operations and bytes a second",
    "sampling": "images a second",
    "storage": "10^9 bytes a second",
    "memory": "bytes",
    "gpu": "seconds; sampling: images a second",
}


@dataclass(frozen=True)
class Size:
    """How much is measured: shapes, classes, numbers of classes, repeats of a round, steps of a sample, bytes copied.

    `rehearsed`: what needs a GPU runs on a CPU where there is none, instead of being left out.
    """

    shapes: tuple[Shape, ...] = SHAPES
    classes: int = CLASSES
    growth: tuple[int, ...] = GROWTH
    growth_shape: Shape = GROWTH_SHAPE
    pool_classes: int = MIXED
    repeats: int = 5
    sampling_steps: int = 4
    copied: int = 1 << 28
    gpu_shape: Shape = GPU_SHAPE
    gpu_depth: int = GPU_DEPTH
    gpu_repeats: int = GPU_REPEATS
    rehearsed: bool = False


SIZES = {
    "full": Size(),
    "tiny": Size((TINY,), 4, (2, 4), TINY, 10, 1, 2, 1 << 20, TINY, 1, 1, rehearsed=True),
}


def run_benchmark(parts: tuple[str, ...], size: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures these `PARTS`; plain data. `say` is told what comes next. ValueError for an unknown part or size.

    The part `gpu` is left out of the figures where there is no CUDA device.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or size not in SIZES:
        raise ValueError(
            f"there is no {', '.join(unknown) or size}; parts: {', '.join(PARTS)}; sizes: {', '.join(SIZES)}"
        )
    sizes, began = SIZES[size], time.perf_counter()
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    pool: Pool | None = None
    forwards: dict[str, Forwards] = {}
    for part in PARTS:
        if part not in parts or (part == "gpu" and not (sizes.rehearsed or torch.cuda.is_available())):
            continue
        say(part)
        before = time.perf_counter()
        if part in ("recombined", "mixed", "sampling") and pool is None:
            pool = make_pool(sizes.shapes[0], sizes.pool_classes)
        if part == "roofline":
            found[part] = _rooflines(sizes, forwards, found)
            forwards.clear()
        elif part in FORWARDS and pool is not None:
            actions = FORWARDS[part](pool, sizes.shapes[0])
            found[part] = measure_forwards(actions, sizes.repeats)
            forwards |= {part: actions} if "roofline" in parts else {}
        else:
            found[part] = _measure(part, sizes, pool)
        seconds[part] = time.perf_counter() - before
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "size": size,
        "sizes": {
            **asdict(sizes),
            "depth": DEPTH,
            "mixed_classes": min(MIXED, sizes.pool_classes),
            "weight_seed": WEIGHT_SEED,
            "batch_seed": BATCH_SEED,
        },
        "threads": torch.get_num_threads(),
        "clock": "seconds of this process's own work" if torch.get_num_threads() == 1 else "seconds that pass",
        "shape": sizes.shapes[0].preset,
        "seconds": time.perf_counter() - began,
        "part_seconds": seconds,
        "complete": set(PARTS) - {"gpu"} <= seconds.keys(),
        "units": {part: UNITS[part] for part in found},
        "figures": found,
        "machine": {
            "cpu": cpu_name(),
            "cpus": os.cpu_count() or 1,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": environment()["versions"],
    }


def _measure(part: str, sizes: Size, pool: Pool | None) -> dict[str, Any]:
    """The figures of a part that needs no other's."""
    shape, repeats = sizes.shapes[0], sizes.repeats
    match part:
        case "start":
            return measure_start(repeats)
        case "steps":
            return {one.preset: measure_steps(one, sizes.classes, repeats) for one in sizes.shapes}
        case "growth":
            growth = measure_growth(sizes.growth_shape, sizes.growth, repeats)
            return {str(count): value for count, value in growth.items()}
        case "sampling" if pool is not None:
            return measure_sampling(pool, shape, sizes.sampling_steps, repeats)
        case "storage":
            return measure_storage(shape, sizes.pool_classes, repeats)
        case "memory":
            return {one.preset: {way: peak_memory(way, one, sizes.classes) for way in WAYS} for one in sizes.shapes}
        case "gpu":
            measured = (sizes.gpu_shape, sizes.classes, sizes.gpu_depth, sizes.gpu_repeats, sizes.sampling_steps)
            return {"device": device_name(), "shape": sizes.gpu_shape.preset, **measure_gpu(*measured)}
    raise AssertionError(part)


def _rooflines(sizes: Size, forwards: Mapping[str, Forwards], found: Mapping[str, Any]) -> dict[str, Any]:
    """The machine's rates, and the work of what has been measured: steps of the first shape, forwards."""
    shape = sizes.shapes[0]
    rates = measure_rates(shape, sizes.repeats, sizes.copied)
    told: dict[str, Any] = {"rates": asdict(rates)}
    if "steps" in found:
        batch = batch_of(shape, sizes.classes)
        told["steps"] = {
            way: count_work(Step(build(way, shape, sizes.classes), batch).gradients).to_dict(rates)
            for way in found["steps"][shape.preset]
        }
    with torch.no_grad():  # inference mode would hide what a layer is made of
        return told | {part: rooflines(actions, rates) for part, actions in forwards.items()}


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def write_benchmark(folder: Path, result: dict[str, Any], table: str) -> None:
    """`performance.json` and `performance.md` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "performance.json", json.loads(json.dumps(result)))
    (folder / "performance.md").write_text(table)
