"""What a forward costs once a pool is recombined: one class, ten, a batch of many classes; and sampling."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kindgene.benchmarks.models import Shape, batch_of, decomposable_model, dense_model
from kindgene.benchmarks.timing import take_turns
from kindgene.diffusion.sampler import sample
from kindgene.interop.adapters import load_peft
from kindgene.interop.to_peft import adapter_names, export_peft
from kindgene.pool.pool import Pool

MIXED = 32
"""Classes, and samples, of a mixed batch."""
FEW = 10
Forwards = Mapping[str, Callable[[], Any]]


def make_pool(shape: Shape, classes: int) -> Pool:
    """A pool of `classes` random tailors."""
    return decomposable_model(shape, classes).decompose()


def recombined_forwards(pool: Pool, shape: Shape) -> Forwards:
    """A forward of recombined models, and of the dense DiT with as many classes.

    Plain models of one class (factored: every matrix a thin pair where that is cheaper) and gated ones of one class and
    of ten. `planned` has a budget of 0.7 of the gated model's multiply-adds.
    """
    x, t, y = batch_of(shape, FEW, null_share=shape.batch + 1)
    one, few, names = torch.zeros_like(y), y, list(pool.classes)
    dense = dense_model(shape, FEW).eval()
    macs = pool.plan(names[:FEW]).cost.macs
    assert macs is not None
    models = {
        "one class, dense": (pool.recombine(names[:1], form="dense"), one),
        "one class, factored": (pool.recombine(names[:1], form="merged"), one),
        "one class, gated": (pool.recombine(names[:1]), one),
        "ten classes, gated": (pool.recombine(names[:FEW]), few),
        "ten classes, planned": (pool.recombine(names[:FEW], max_macs=int(0.7 * macs)), few),
        "dense DiT": (dense, few),
    }
    return {name: _forward(model.eval(), x, t, labels) for name, (model, labels) in models.items()}


def mixed_forwards(pool: Pool, shape: Shape) -> Forwards:
    """A forward of a sample of each of `MIXED` classes: gated, peft's mixed batch, a merged model a class."""
    names = list(pool.classes)[:MIXED]
    shape = Shape(shape.preset, shape.learngene_rank, shape.tailor_rank, len(names))
    x, t, _ = batch_of(shape, len(names))
    gated, labels = pool.recombine(names).eval(), torch.arange(len(names))
    merged = [pool.recombine([name], form="merged").eval() for name in names]
    zero = torch.zeros(1, dtype=torch.long)
    with tempfile.TemporaryDirectory() as folder:
        export_peft(pool, Path(folder) / "peft", names)
        adapters = load_peft(Path(folder) / "peft", names)
    chosen, zeros = list(adapter_names(names).values()), torch.zeros(len(names), dtype=torch.long)

    def each() -> None:
        for index, model in enumerate(merged):
            model(x[index : index + 1], t[index : index + 1], zero)

    return {
        "gated": _forward(gated, x, t, labels),
        "peft mixed batch": lambda: adapters(x, t, zeros, adapter_names=chosen),
        "a merged model a class": each,
    }


def measure_forwards(forwards: Forwards, repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns."""
    with torch.inference_mode():
        return take_turns(forwards, repeats)


def measure_sampling(pool: Pool, shape: Shape, steps: int, repeats: int) -> dict[str, float]:
    """Images a second of a median round: `steps` DDIM steps, with and without guidance."""
    names = list(pool.classes)
    gated, merged = pool.recombine(names[:FEW]), pool.recombine(names[:1], form="merged")
    runs: dict[str, tuple[Any, list[str | None], float]] = {
        "gated, guided": (gated, [names[index % FEW] for index in range(shape.batch)], 1.5),
        "gated": (gated, [names[index % FEW] for index in range(shape.batch)], 1.0),
        "merged": (merged, [names[0]] * shape.batch, 1.0),
    }

    def draw(model: Any, asked: list[str | None], guidance: float) -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(0)
        return lambda: sample(model, asked, guidance=guidance, steps=steps, clip=1.0, generator=generator)

    seconds = take_turns({name: draw(*run) for name, run in runs.items()}, repeats)
    return {name: shape.batch / value for name, value in seconds.items()}


def _forward(model: Any, *inputs: torch.Tensor) -> Callable[[], Any]:
    return lambda: model(*inputs)
