"""The backbones a pool can rebuild by itself: a fixed table, loaded through each class's own configuration.

No code is ever taken from a pool. Any other backbone is given as a module (``backbone=``), whose weights are replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

TABLE: Mapping[str, str] = {
    "DiT": "kindgene.models.dit",
    "DiTTransformer2DModel": "diffusers",
    "ViTModel": "transformers",
}


def describe_backbone(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """Class name and plain configuration of a backbone ({} for one that is not in the table)."""
    kind = type(module).__name__
    if kind not in TABLE:
        return kind, {}
    config: Any = module.config
    values = config.to_dict() if kind == "ViTModel" else dict(config)
    own_only = ("class_names", "low_rank")
    return kind, {key: value for key, value in values.items() if not key.startswith("_") and key not in own_only}


def build_backbone(
    kind: str,
    config: Mapping[str, Any],
    class_names: Sequence[str],
    label_tables: Sequence[str],
    backbone: nn.Module | None = None,
    *,
    dtype: torch.dtype,
    null_row: bool = True,
    low_rank: Mapping[str, Sequence[int | None]] | None = None,
) -> nn.Module:
    """A plain dense backbone for these classes, with label tables of one row a class (and a null row, last).

    Its weights are about to be replaced. `low_rank` is installed where the model is to keep thin pairs.
    """
    if backbone is not None:
        if type(backbone).__name__ != kind:
            raise ValueError(f"this pool was made from a {kind}; backbone= is a {type(backbone).__name__}")
        module = copy.deepcopy(backbone)
    elif kind not in TABLE:
        raise ValueError(f"backbone {kind} is not one that pools rebuild ({', '.join(TABLE)}); pass backbone=module")
    elif kind == "DiT":
        names = {"num_classes": len(class_names), "class_names": list(class_names)}
        form = {"null_row": null_row, "low_rank": None if low_rank is None else dict(low_rank)}
        module = _class(kind).from_config({**config, **names, **form})
        return _cast(module, dtype)
    elif kind == "ViTModel":
        transformers = import_module("transformers")
        module = _class(kind)(transformers.ViTConfig.from_dict(dict(config)))
    else:
        module = _class(kind).from_config(dict(config))
    _resize_tables(module, label_tables, len(class_names) + int(null_row))
    if low_rank is not None:
        from kindgene.models.low_rank import install_low_rank

        install_low_rank(module, low_rank)
    return _cast(module, dtype)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """To a dtype by torch's own method: diffusers' override logs a warning about float32 modules that do not exist."""
    return nn.Module.to(module, dtype)


def _class(kind: str) -> Any:
    return getattr(import_module(TABLE[kind]), kind)


def _resize_tables(module: nn.Module, tables: Sequence[str], rows: int) -> None:
    for name in tables:
        old: Any = module.get_submodule(name)
        if old.num_embeddings != rows:
            table = nn.Embedding(rows, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
            module.set_submodule(name, table)
        parent = module.get_submodule(name.rpartition(".")[0])
        if isinstance(getattr(parent, "dropout_prob", None), float):
            parent.dropout_prob = 0.0  # type: ignore[assignment]  # a backbone never drops labels itself


def floating_dtype(state: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The dtype a state's weights are kept in."""
    return next(value.dtype for value in state.values() if value.is_floating_point())
