"""Gigabytes a second of taking apart, saving, opening and recombining, beside a plain safetensors copy."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from kindgene.benchmarks.models import Shape, decomposable_model
from kindgene.benchmarks.timing import take_turns
from kindgene.pool.pool import Pool


def measure_storage(shape: Shape, classes: int, repeats: int) -> dict[str, float]:
    """GB/s of each; `plain save` and `plain load` are of the same tensors in one safetensors file.

    Files come from the page cache. With one thread it is this process's own work that is timed, not the wait for the
    disk. A pool's hashes are made when it is saved and compared when it is opened: the plain file has none.
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
        found = take_turns(
            {
                "decompose": model.decompose,
                "save": lambda: pool.save_pretrained(root / f"pool-{next(number)}"),
                "open": lambda: Pool.from_pretrained(first),
                "recombine": lambda: pool.recombine(names),
                "plain save": lambda: save_file(tensors, root / f"plain-{next(number)}.safetensors"),
                "plain load": lambda: [value.clone() for value in load_file(root / "plain.safetensors").values()],
            },
            repeats,
        )
    return {name: size / value / 1e9 for name, value in found.items()}
