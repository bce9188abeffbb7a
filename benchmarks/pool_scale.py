"""A pool of many classes against one of three: opening, listing, adding, removing, verifying.

Writes a pool of --classes real tailor files into the new folder --out, measures, prints, and deletes it again. The pool
is a DiT-S/4 in bfloat16 with two targets a block and tailors of rank 1: 90 KB a class (0.9 GB for 10,000) beside a
learngene of 47 MB, about what the whole DiT-S/4 at rank 84 with all targets has in float32. The weights are random,
which no time depends on. The two pools take turns, in one run, so that ratios hold whatever else the machine does;
files come from the page cache.

Example: python benchmarks/pool_scale.py --out /tmp/pool-scale --json docs/results/pool-scale.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kindgene import DiT, KindConfig, Pool, make_decomposable
from kindgene._version import __version__
from kindgene.evaluation.inspect_path import inspect_path
from kindgene.evaluation.inspection import MEASURED
from kindgene.files import write_json
from kindgene.pool import folder
from kindgene.pool.classes import ClassEntry
from kindgene.pool.config import PoolConfig
from kindgene.pool.names import tailor_file
from kindgene.pool.tailor import Tailor

WANTED = ["a", "b", "c"]
TARGETS = ["blocks.*.attn.proj", "blocks.*.adaLN_modulation.1"]
CHUNK = 1000
"""Classes written between two lines of progress."""


def build(out: Path, classes: int, preset: str, rank: int, seed: int) -> tuple[Path, Path]:
    """A pool of three classes, and the same pool grown to `classes`. Raises ValueError where the disk is too full."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = DiT.from_preset(preset, num_classes=len(WANTED), class_names=WANTED)
    config = KindConfig(num_classes=len(WANTED), learngene_rank=rank, tailor_rank=1, targets=TARGETS)
    model = make_decomposable(dense, config, torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    few = model.decompose().save_pretrained(out / "few")
    many = Path(shutil.copytree(few, out / "many"))
    pool = Pool.from_pretrained(many, WANTED[:1])
    needed = 1.1 * (classes + CHUNK) * (many / pool.config.classes[WANTED[0]].file).stat().st_size
    if shutil.disk_usage(out).free < needed:
        raise ValueError(f"{out} has less than {needed / 1e9:.1f} GB free: choose another --out, or fewer --classes")
    entries: dict[str, ClassEntry] = {}
    generator = torch.Generator().manual_seed(seed)
    for number in range(len(WANTED), classes):
        entries |= write_one(many, pool.config, another(pool.tailors[0], f"class {number}", generator))
        if (number + 1) % CHUNK == 0 or number + 1 == classes:
            sys.stderr.write(f"{number + 1:,} classes written\n")
    grown = pool.config.with_classes({**pool.config.classes, **entries})
    write_json(many / folder.CONFIG_FILE, grown.to_json())
    return few, many


def another(tailor: Tailor, name: str, generator: torch.Generator) -> Tailor:
    """A tailor of its own for a new class, canonical as `tailor` is: other singular values, another label row."""
    factor = float(torch.rand((), generator=generator)) + 0.5
    components = {key: value * factor if key.endswith(".s") else value for key, value in tailor.components.items()}
    rows = {table: torch.randn(row.shape, generator=generator).to(row) for table, row in tailor.rows.items()}
    return Tailor((name,), components, rows)


def write_one(root: Path, config: PoolConfig, tailor: Tailor) -> dict[str, ClassEntry]:
    """What `Pool.add` writes for a tailor, without waiting for the disk, which would make it an hour."""
    data = tailor.to_bytes(config.learngene_id)
    digest = hashlib.sha256(data).hexdigest()
    file = tailor_file(tailor.classes, digest)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(data)
    entry = replace(config.classes[WANTED[0]], file=file, sha256=digest)
    return dict.fromkeys(tailor.classes, entry)


def take_turns(actions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each action, all of them once a round, every other round backwards."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats):
        for name in list(actions)[:: 1 if turn % 2 == 0 else -1]:
            began = time.perf_counter()
            actions[name]()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(few: Path, many: Path, repeats: int) -> dict[str, float]:
    """Every figure: medians in seconds, and ratios of medians under names that end with `_ratio`."""

    def say(what: str) -> None:
        sys.stderr.write(f"measuring: {what}\n")

    say("opening and listing")
    found = take_turns(
        {
            "open_3_of_3": lambda: Pool.from_pretrained(few, WANTED),
            "open_3_of_many": lambda: Pool.from_pretrained(many, WANTED),
            "list_classes_of_3": lambda: Pool.from_pretrained(few, learngene_only=True).classes,
            "list_classes": lambda: Pool.from_pretrained(many, learngene_only=True).classes,
            "read_config_of_3": lambda: folder.read_config(few),
            "read_config": lambda: folder.read_config(many),
        },
        repeats,
    )
    say("recombining, inspect --sizes")
    some = max(1, repeats // 5)
    pools = {path: Pool.from_pretrained(path, WANTED) for path in (few, many)}
    found |= take_turns(
        {
            "recombine_3_of_3": lambda: pools[few].recombine(WANTED),
            "recombine_3_of_many": lambda: pools[many].recombine(WANTED),
            "inspect_sizes_of_3": lambda: inspect_path(few, None, listing=True),
            "inspect_sizes": lambda: inspect_path(many, None, listing=True),
        },
        some,
    )
    say("adding and removing")
    fresh = pools[few].transfer(["one more"], tailor_rank=1)
    changes: dict[str, list[float]] = {"add_one_to_3": [], "add_one": [], "remove_one_of_4": [], "remove_one": []}
    for _ in range(some):  # in pairs, so each round finds the pools as they were
        for name, act in (("add", lambda pool: pool.add(fresh)), ("remove", lambda pool: pool.remove(["one more"]))):
            small, large = (seconds(act, pools[path]) for path in (few, many))
            changes["add_one_to_3" if name == "add" else "remove_one_of_4"].append(small)
            changes[f"{name}_one"].append(large)
    found |= {name: statistics.median(values) for name, values in changes.items()}
    say("inspect, verify")
    found["inspect"] = take_turns({"inspect": lambda: inspect_path(many)}, min(3, some))["inspect"]
    found["verify_all"] = seconds(Pool.verify, pools[many])
    return found | {
        "open_ratio": found["open_3_of_many"] / found["open_3_of_3"],
        "list_ratio": found["list_classes"] / found["list_classes_of_3"],
        "recombine_ratio": found["recombine_3_of_many"] / found["recombine_3_of_3"],
        "add_ratio": found["add_one"] / found["add_one_to_3"],
        "remove_ratio": found["remove_one"] / found["remove_one_of_4"],
    }


def seconds(act: Callable[[Pool], Any], pool: Pool) -> float:
    """Time of one call."""
    began = time.perf_counter()
    act(pool)
    return time.perf_counter() - began


def run(
    out: Path, classes: int, preset: str = "DiT-S/4", rank: int = 84, repeats: int = 25, seed: int = 0
) -> dict[str, Any]:
    """Builds, measures, deletes."""
    out.mkdir(parents=True)
    try:
        few, many = build(out, classes, preset, rank, seed)
        files = [path.stat().st_size for path in (many / folder.TAILOR_FOLDER).rglob("*.safetensors")]
        facts = {
            "classes": classes,
            "preset": preset,
            "learngene_rank": rank,
            "targets": TARGETS,
            "seed": seed,
            "repeats": repeats,
            "learngene_bytes": (many / folder.LEARNGENE_FILE).stat().st_size,
            "tailor_bytes": statistics.mean(files),
            "tailors_bytes": sum(files),
            "config_bytes": (many / folder.CONFIG_FILE).stat().st_size,
        }
        return {**facts, "seconds": measure(few, many, repeats), "environment": environment()}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "kindgene": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown: each act on three classes, on many, and the ratio."""
    found, many = result["seconds"], f"{result['classes']:,}"
    lines = [f"| | 3 classes | {many} classes | ratio |", "|---|---:|---:|---:|"]
    for title, small, large in (
        ("open the pool, load 3 classes", "open_3_of_3", "open_3_of_many"),
        ("open it, list the classes", "list_classes_of_3", "list_classes"),
        ("of that, config.json", "read_config_of_3", "read_config"),
        ("recombine 3 classes", "recombine_3_of_3", "recombine_3_of_many"),
        ("`kindgene inspect POOL --sizes`", "inspect_sizes_of_3", "inspect_sizes"),
        ("add a class", "add_one_to_3", "add_one"),
        ("remove a class", "remove_one_of_4", "remove_one"),
    ):
        a, b = found[small], found[large]
        lines.append(f"| {title} | {1000 * a:,.1f} ms | {1000 * b:,.1f} ms | {b / a:.2f} |")
    lines.append(
        f"| `kindgene inspect POOL`: the learngene and {MEASURED} tailors measured | | {found['inspect']:.1f} s | |"
    )
    lines.append(f"| verify every file | | {found['verify_all']:.1f} s | |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder to work in; it is deleted afterwards")
    parser.add_argument("--classes", type=int, default=10_000, help="of the large pool (default: 10000)")
    parser.add_argument("--preset", default="DiT-S/4", help="size of the DiT (default: DiT-S/4)")
    parser.add_argument("--rank", type=int, default=84, help="of the learngene (default: 84)")
    parser.add_argument("--repeats", type=int, default=25, help="rounds; a fifth for what is slow (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    choices = parser.parse_args(arguments)
    if choices.classes <= len(WANTED):
        parser.error(f"--classes must be more than {len(WANTED)}")
    if choices.out.exists():
        parser.error(f"{choices.out} exists; name a new folder")
    result = run(choices.out, choices.classes, choices.preset, choices.rank, choices.repeats, choices.seed)
    sizes = [f"{result[key] / 1e6:,.2f} MB {what}" for key, what in SIZES.items()]
    sys.stdout.write(f"{table(result)}\n{', '.join(sizes)}; {json.dumps(result['environment'])}\n")
    if choices.json is not None:
        choices.json.write_text(json.dumps(result, indent=2) + "\n")


SIZES = {
    "learngene_bytes": "learngene",
    "tailor_bytes": "a tailor",
    "tailors_bytes": "all tailors",
    "config_bytes": "config.json",
}


if __name__ == "__main__":
    main()
