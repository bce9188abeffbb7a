"""Gigabytes a second of taking apart, saving, opening and recombining, beside a plain safetensors copy."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

from safetensors.torch import load, load_file, save_file
from torch import Tensor

from kindgene.benchmarks.models import Shape, decomposable_model
from kindgene.benchmarks.timing import take_turns
from kindgene.pool.pool import Pool


def measure_storage(shape: Shape, classes: int, repeats: int) -> dict[str, float]:
    """GB/s of each, by the time that passes; the plain ones are of the same tensors in one safetensors file.

    Files come from the page cache. A pool's files are flushed to the disk and their hashes made when it is saved, and
    compared when it is opened: `plain save, flushed` and `plain load, hashed` are a plain file with as much certainty.
    """
    model = decomposable_model(shape, classes)
    pool = model.decompose()
    names = list(pool.classes)
    tensors = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        root, number = Path(folder), iter(range(10**6))
        first = pool.save_pretrained(root / "first")
        save_file(tensors, root / "plain.safetensors")
        digest = hashlib.sha256((root / "plain.safetensors").read_bytes()).hexdigest()
        found = take_turns(
            {
                "decompose": model.decompose,
                "save": lambda: pool.save_pretrained(root / f"pool-{next(number)}"),
                "open": lambda: Pool.from_pretrained(first),
                "recombine": lambda: pool.recombine(names),
                "plain save": lambda: save_file(tensors, root / f"plain-{next(number)}.safetensors"),
                "plain save, flushed": lambda: _save_flushed(tensors, root / f"plain-{next(number)}.safetensors"),
                "plain load": lambda: [value.clone() for value in load_file(root / "plain.safetensors").values()],
                "plain load, hashed": lambda: _load_hashed(root / "plain.safetensors", digest),
            },
            repeats,
            now=time.perf_counter,
        )
    return {name: size / value / 1e9 for name, value in found.items()}


def _save_flushed(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _load_hashed(path: Path, digest: str) -> dict[str, Tensor]:
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    return load(data)
