"""An export for peft, opened: its base, its adapters, and whether they belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kindgene.files import StrPath, read_json, read_metadata
from kindgene.interop.checkpoint import WEIGHTS_FILE
from kindgene.interop.folder import RECORD
from kindgene.interop.to_diffusers import load_transformer
from kindgene.models.dit import DiT
from kindgene.pool.names import quoted

BASE, ADAPTERS = "base", "adapters"
ADAPTER_FILE = "adapter_model.safetensors"
BASE_ADAPTER = "__base__"
"""peft's name, in a batch of mixed adapters, for samples without any."""

CLASS_LABEL, NULL_LABEL = 0, 1
"""Labels of every adapter's own label table, [class, null], and of the base's, [unused, null]."""


def load_peft(export: StrPath, classes: Sequence[str] | None = None, dtype: torch.dtype | None = None) -> Any:
    """The `peft.PeftModel` of an export: its base with the adapters of `classes` (None: all), each checked.

    An adapter is active when it is the only one asked for or `set_adapter` names it. Raises ValueError for a folder
    that is no such export, unknown classes, and an adapter that was made for another learngene.
    """
    needs_peft()
    folder = Path(export)
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("to") != "peft":
        raise ValueError(f"{folder} is not an export for peft")
    adapters: Mapping[str, str] = record["adapters"]
    names = list(adapters) if classes is None else list(classes)
    unknown = [name for name in names if name not in adapters]
    if unknown or not names:
        raise ValueError(f"no adapter for {quoted(unknown)} in {folder}; it has {quoted(adapters)}")
    return open_adapters(folder, {name: adapters[name] for name in names}, dtype or getattr(torch, record["dtype"]))


def check_adapter(adapter: StrPath, base: StrPath) -> None:
    """Raises ValueError unless the adapter in this folder was made for the base in that one (the same learngene).

    peft itself loads any adapter whose shapes fit; a tailor on another learngene gives images of nothing.
    """
    of_adapter = _learngene_of(Path(adapter) / ADAPTER_FILE)
    of_base = _learngene_of(Path(base) / WEIGHTS_FILE)
    if of_adapter != of_base:
        raise ValueError(
            f"the adapter {adapter} was made for the learngene {of_adapter[:16]}, the base {base} is {of_base[:16]}: "
            "they do not belong together"
        )


def load_base(folder: StrPath, dtype: torch.dtype | None = None) -> nn.Module:
    """The base model of an export for peft, for ``PeftModel.from_pretrained``."""
    folder = Path(folder)
    if read_json(folder / "config.json").get("_class_name") == "DiT":
        model: nn.Module = DiT.from_pretrained(folder, torch_dtype=dtype)
        return model
    return load_transformer(folder, dtype or torch.float32)


def open_adapters(folder: Path, names: Mapping[str, str], dtype: torch.dtype) -> Any:
    """Base and adapters (class -> adapter name) of an export's folder, as one `peft.PeftModel`."""
    from peft import PeftModel

    base = load_base(folder / BASE, dtype)
    model: Any = None
    for adapter in names.values():
        path = folder / ADAPTERS / adapter
        check_adapter(path, folder / BASE)
        if model is None:
            model = PeftModel.from_pretrained(base, path, adapter_name=adapter, autocast_adapter_dtype=False)
        else:
            model.load_adapter(path, adapter_name=adapter, autocast_adapter_dtype=False)
    return model.eval()


def needs_peft() -> None:
    """Raises ValueError where peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError("this needs peft: pip install 'kindgene[peft]'") from error


def _learngene_of(weights: Path) -> str:
    metadata = read_metadata(weights)
    told = json.loads(metadata["kindgene"]) if "kindgene" in metadata else metadata
    if "learngene_id" not in told:
        raise ValueError(f"{weights} does not say which learngene it belongs to: it is no export of kindgene")
    return str(told["learngene_id"])
