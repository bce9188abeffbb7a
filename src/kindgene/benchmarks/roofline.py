"""What work takes at least: its operations and bytes, beside what the machine can do of both.

All that torch runs is looked at, one operation after the other: matrix products and attention compute, and everything
reads what it is given and writes what it makes, as if nothing stayed in a cache. Each takes at least the longer of the
two, at the rates measured in the same run; their sum is the roofline of the whole. It leaves out Python, allocation,
and that products of small or thin matrices run slower than those of large ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kindgene.benchmarks.models import Shape
from kindgene.benchmarks.timing import clock
from kindgene.models.presets import find_preset

_FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_OVERWRITING = ("copy_", "fill_", "zero_", "normal_")
_GATHERING = ("index_select", "index", "gather", "embedding")
_ADDING_ROWS = ("index_add_", "index_put_", "index_copy_", "scatter_add_")
_HASHED = 1 << 25


@dataclass(frozen=True)
class Rates:
    """What one run measures of the machine, each the best of some rounds.

    Float operations (a multiply-add is two) a second: `products` of a dense layer, `thin_products` of a pair of the
    learngene's rank in its place. Bytes a second: `copy` of memory that no cache holds, read and written; `sha256`.
    """

    products: float
    thin_products: float
    copy: float
    sha256: float


@dataclass(frozen=True)
class Work:
    """(float operations, bytes) of everything that torch ran, in its order."""

    pieces: tuple[tuple[int, int], ...]

    def to_dict(self, rates: Rates) -> dict[str, float]:
        """Both in all; the seconds of arithmetic alone, of memory alone, and of the roofline."""
        operations, moved = (sum(piece[place] for piece in self.pieces) for place in (0, 1))
        return {
            "operations": operations,
            "bytes": moved,
            "arithmetic_seconds": operations / rates.products,
            "memory_seconds": moved / rates.copy,
            "seconds": sum(max(ops / rates.products, size / rates.copy) for ops, size in self.pieces),
        }


def measure_rates(shape: Shape, repeats: int, copied: int) -> Rates:
    """`copied`: bytes of what is copied."""
    preset = find_preset(shape.preset)
    inputs, outputs = preset.hidden_size, 4 * preset.hidden_size
    rows = shape.batch * (preset.data["input_size"] // preset.patch_size) ** 2
    generator = torch.Generator().manual_seed(0)
    rank = shape.learngene_rank
    sizes = (rows, inputs), (inputs, outputs), (inputs, rank), (rank, outputs)
    x, weight, v, u = (torch.randn(size, generator=generator) for size in sizes)
    dense, thin = torch.empty(rows, outputs), torch.empty(rows, rank)
    source = torch.ones(copied // 4)
    target, hashed = torch.empty_like(source), bytes(min(copied, _HASHED))

    def pair() -> None:
        torch.mm(x, v, out=thin)
        torch.mm(thin, u, out=dense)

    with torch.inference_mode():
        return Rates(
            products=2 * rows * inputs * outputs / _best(lambda: torch.mm(x, weight, out=dense), repeats),
            thin_products=2 * rows * rank * (inputs + outputs) / _best(pair, repeats),
            copy=2 * source.nbytes / _best(lambda: target.copy_(source), repeats),
            sha256=len(hashed) / _best(lambda: hashlib.sha256(hashed).digest(), repeats),
        )


def count_work(action: Callable[[], Any]) -> Work:
    """What an action has torch run, gradients included."""
    with _Counted() as counted:
        action()
    return Work(tuple(counted.pieces))


def rooflines(actions: Mapping[str, Callable[[], Any]], rates: Rates) -> dict[str, dict[str, float]]:
    """The work of each action, as plain data."""
    return {name: count_work(action).to_dict(rates) for name, action in actions.items()}


class _Counted(TorchDispatchMode):
    """Hears of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        moved = _moved(func, name, args, kwargs, out)
        if moved:
            self.pieces.append((_operations(name, args, kwargs, out), moved))
        return out


def _operations(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """By torch's own formulas, which know neither what is done in place nor attention on a CPU."""
    packet = getattr(torch.ops.aten, name.removesuffix("_").replace("_for_cpu", ""), None)
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def _moved(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Bytes read and written; 0 of a view, and of memory that is only made."""
    made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    held = {value.untyped_storage().data_ptr() for value in given}
    view = not func._schema.is_mutable and all(one.untyped_storage().data_ptr() in held for one in made)
    if name in _FREE or (made and view):
        return 0
    written = sum(map(_bytes, made))
    if name in _GATHERING:  # the rows that are asked for, and nothing else of the table
        return 2 * written
    if name in _ADDING_ROWS:
        return 3 * _bytes(given[-1])
    overwritten = {id(value) for value in tree_leaves(kwargs.get("out")) if isinstance(value, Tensor)}
    if name in _OVERWRITING:
        overwritten.add(id(given[0]))
    return written + sum(_bytes(value) for value in given if id(value) not in overwritten)


def _bytes(value: Tensor) -> int:
    """Of what there is of it: numbers that are repeated without being copied count once."""
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())


def _best(action: Callable[[], Any], repeats: int) -> float:
    """Least seconds of a call, after one to warm up."""
    now = clock()
    action()
    times = []
    for _ in range(repeats):
        began = now()
        action()
        times.append(now() - began)
    return max(min(times), 1e-9)
