"""The exports by name, and what each of them is told."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kindgene.files import StrPath, read_json
from kindgene.interop.folder import Export
from kindgene.interop.source import Source
from kindgene.interop.vae import stored_dtype
from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool

EXPORTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "dit": ("kindgene.interop.to_dit", "export_dit"),
        "diffusers": ("kindgene.interop.to_diffusers", "export_diffusers"),
        "peft": ("kindgene.interop.to_peft", "export_peft"),
        "pipeline": ("kindgene.interop.to_pipeline", "export_pipeline"),
        "torch-export": ("kindgene.interop.to_program", "export_torch"),
        "onnx": ("kindgene.interop.to_program", "export_onnx"),
    }
)


def export(source: Source, to: str, out: StrPath, classes: Sequence[str] | None = None, **options: Any) -> Export:
    """Exports classes of a pool (or a plain DiT) into a new folder `out`; checked by running it in its software.

    `options` that are None are not given. Raises ValueError for an unknown `to`, an option that this export does not
    take, and what cannot be exported, with nothing written.
    """
    function = _function(to)
    taken = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    given = {name: value for name, value in options.items() if value is not None}
    foreign = [name for name in given if name not in taken]
    if foreign:
        raise ValueError(f"an export to {to} takes no {', '.join(foreign)}; it takes {', '.join(taken)}")
    return function(source, out, classes, **given)


def open_source(path: StrPath, classes: Sequence[str] | None) -> Source:
    """A pool's folder (with the tailors of `classes`), or that of a plain DiT."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, so it is neither a pool nor a DiT")
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and config.get("_class_name") == DiT.__name__:
        model: DiT = DiT.from_pretrained(folder, torch_dtype=stored_dtype(folder))
        return model
    return Pool.from_pretrained(folder, classes=classes)


def _function(to: str) -> Callable[..., Export]:
    if to not in EXPORTS:
        near = difflib.get_close_matches(to, EXPORTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown export {to!r}; there are {', '.join(EXPORTS)}{hint}")
    module, name = EXPORTS[to]
    function: Callable[..., Export] = getattr(import_module(module), name)
    return function
