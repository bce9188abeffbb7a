"""A pool of many classes against one of three: opening, listing, adding, removing, verifying.

Builds a pool of --classes real tailor files (DiT-S/4, tailor rank 1: about 0.35 MB a class, 3.5 GB for 10,000) under
--out, measures, prints, and deletes it again. Openings of the two pools alternate, so their ratio is of one run.

Example: python benchmarks/pool_scale.py --out /tmp/pool-scale --json docs/results/pool-scale.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kindgene import DiT, KindConfig, Pool, make_decomposable

CHUNK = 500


def build(out: Path, classes: int, preset: str, rank: int) -> tuple[Path, Path]:
    """A pool of three classes, and the same pool grown to `classes`."""
    torch.manual_seed(0)
    names = ["a", "b", "c"]
    dense = DiT.from_preset(preset, num_classes=3, class_names=names)
    config = KindConfig(num_classes=3, learngene_rank=rank, tailor_rank=1)
    few = make_decomposable(dense, config).decompose().save_pretrained(out / "few")
    many = Path(shutil.copytree(few, out / "many"))
    pool = Pool.from_pretrained(many, learngene_only=True)
    for first in range(3, classes, CHUNK):
        fresh = [f"class {number}" for number in range(first, min(first + CHUNK, classes))]
        pool.add(pool.transfer(fresh, tailor_rank=1))
        pool.tailors.clear()
        sys.stderr.write(f"{len(pool.classes):,} classes written\n")
    return few, many


def seconds(act: Callable[[], Any], repeats: int = 1) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(few: Path, many: Path, repeats: int) -> dict[str, float]:
    """Every figure, in seconds; `open_ratio` is that of the medians."""
    wanted = ["a", "b", "c"]
    small, large = [], []
    for _ in range(repeats):
        small.append(seconds(lambda: Pool.from_pretrained(few, classes=wanted)))
        large.append(seconds(lambda: Pool.from_pretrained(many, classes=wanted)))
    pool = Pool.from_pretrained(many, learngene_only=True)
    fresh = pool.transfer(["one more"], tailor_rank=1)
    return {
        "open_3_of_3": statistics.median(small),
        "open_3_of_many": statistics.median(large),
        "open_ratio": statistics.median(large) / statistics.median(small),
        "list_classes": seconds(lambda: Pool.from_pretrained(many, learngene_only=True).classes, repeats),
        "recombine_3_of_many": seconds(lambda: Pool.from_pretrained(many, classes=wanted).recombine(wanted)),
        "add_one": seconds(lambda: pool.add(fresh)),
        "remove_one": seconds(lambda: pool.remove(["one more"])),
        "verify_all": seconds(pool.verify),
    }


def run(out: Path, classes: int, preset: str = "DiT-S/4", rank: int = 84, repeats: int = 15) -> dict[str, Any]:
    """Builds, measures, deletes."""
    out.mkdir(parents=True)
    try:
        few, many = build(out, classes, preset, rank)
        files = [path.stat().st_size for path in (many / "tailors").rglob("*.safetensors")]
        facts = {
            "classes": classes,
            "preset": preset,
            "learngene_bytes": (many / "learngene.safetensors").stat().st_size,
            "tailor_bytes": statistics.mean(files),
            "config_bytes": (many / "config.json").stat().st_size,
        }
        return {**facts, "seconds": measure(few, many, repeats), "environment": environment()}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder to work in; it is deleted afterwards")
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    choices = parser.parse_args()
    result = run(choices.out, choices.classes)
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if choices.json is not None:
        choices.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
