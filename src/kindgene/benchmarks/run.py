"""The whole benchmark: every part in turn, the figures as plain data, and the bars they are to reach."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kindgene.benchmarks.gpu import device_name, measure_gpu
from kindgene.benchmarks.inference import MIXED, make_pool, measure_mixed, measure_recombined, measure_sampling
from kindgene.benchmarks.models import SHAPES, TINY, Shape
from kindgene.benchmarks.storage import measure_storage
from kindgene.benchmarks.training_step import WAYS, measure_growth, measure_steps, peak_memory
from kindgene.files import write_json
from kindgene.training.environment import environment

CLASSES = 150
GROWTH = (10, 150, 1_000, 10_000)
GROWTH_SHAPE = Shape("DiT-S/4", 84, 1, 32)
GPU_SHAPE, GPU_DEPTH, GPU_REPEATS = Shape("DiT-B/4", 168, 4, 256), 12, 20
PARTS = ("steps", "growth", "recombined", "mixed", "memory", "storage", "sampling", "gpu")


@dataclass(frozen=True)
class Size:
    """How much is measured: shapes, classes, numbers of classes, repeats of a round, steps of a sample.

    `rehearsed`: what needs a GPU runs on a CPU where there is none, instead of being left out.
    """

    shapes: tuple[Shape, ...] = SHAPES
    classes: int = CLASSES
    growth: tuple[int, ...] = GROWTH
    growth_shape: Shape = GROWTH_SHAPE
    pool_classes: int = MIXED
    repeats: int = 5
    sampling_steps: int = 4
    gpu_shape: Shape = GPU_SHAPE
    gpu_depth: int = GPU_DEPTH
    gpu_repeats: int = GPU_REPEATS
    rehearsed: bool = False


SIZES = {
    "full": Size(),
    "tiny": Size((TINY,), 4, (2, 4), TINY, 10, 1, 2, TINY, 1, 1, rehearsed=True),
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
    sizes = SIZES[size]
    shape, pool = sizes.shapes[0], None
    found: dict[str, Any] = {}
    for part in PARTS:
        if part not in parts:
            continue
        say(part)
        if part in ("recombined", "mixed", "sampling") and pool is None:
            pool = make_pool(shape, sizes.pool_classes)
        match part:
            case "steps":
                found[part] = {one.preset: measure_steps(one, sizes.classes, sizes.repeats) for one in sizes.shapes}
            case "growth":
                growth = measure_growth(sizes.growth_shape, sizes.growth, sizes.repeats)
                found[part] = {str(count): value for count, value in growth.items()}
            case "recombined":
                assert pool is not None
                found[part] = measure_recombined(pool, shape, sizes.repeats)
            case "mixed":
                assert pool is not None
                found[part] = measure_mixed(pool, shape, sizes.repeats)
            case "memory":
                found[part] = {way: peak_memory(way, shape, sizes.classes) for way in WAYS}
            case "storage":
                found[part] = measure_storage(shape, sizes.pool_classes, sizes.repeats)
            case "sampling":
                assert pool is not None
                found[part] = measure_sampling(pool, shape, sizes.sampling_steps)
            case "gpu" if sizes.rehearsed or torch.cuda.is_available():
                found[part] = {
                    "device": device_name(),
                    "shape": sizes.gpu_shape.preset,
                    **measure_gpu(
                        *(sizes.gpu_shape, sizes.classes, sizes.gpu_depth, sizes.gpu_repeats, sizes.sampling_steps)
                    ),
                }
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "size": size,
        "threads": torch.get_num_threads(),
        "clock": "seconds of this process" if torch.get_num_threads() == 1 else "seconds",
        "shape": shape.preset,
        "figures": found,
        "machine": {"cpu": cpu_name(), "cpus": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "versions": environment()["versions"],
    }


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
