"""To peft: the learngene as a dense base model, a tailor as a LoRA adapter.

An adapter of rank r and alpha r adds B A to a weight: A holds the tailor's rows of V, B its columns of U times s. A
fused matrix (qkv) gets the components of all its parts, B being block-diagonal. The label row comes with the adapter as
a table of its own, [class, null], in the place of the base's [unused, null]: a class is label 0, null is label 1.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kindgene.core.components import Components, compose
from kindgene.core.pieces import State, layer_components
from kindgene.files import StrPath, write_safetensors
from kindgene.interop.adapters import (
    ADAPTER_FILE,
    ADAPTERS,
    BASE,
    BASE_ADAPTER,
    CLASS_LABEL,
    NULL_LABEL,
    needs_peft,
    open_adapters,
)
from kindgene.interop.check import checked_error, output_of
from kindgene.interop.checkpoint import WEIGHTS_FILE
from kindgene.interop.folder import Export, whole_folder, write_record
from kindgene.interop.public import WEIGHTS_FORMAT
from kindgene.interop.source import Chosen, Source, choose
from kindgene.pool.backbones import build_backbone
from kindgene.pool.pool import Pool
from kindgene.pool.tailor import Tailor, tailors_by_class


def export_peft(
    source: Source, out: StrPath, classes: Sequence[str] | None = None, *, dtype: str | None = None
) -> Export:
    """Writes base/ (the learngene, dense) and adapters/<name>/, one a class, and checks them with peft.

    The check is a batch of all adapters and null mixed. Needs peft (``pip install 'kindgene[peft]'``). Raises
    ValueError for what cannot be exported, with nothing written.
    """
    needs_peft()
    if not isinstance(source, Pool):
        raise ValueError("a plain DiT has no tailors, so there is no adapter to make: export a pool")
    with whole_folder(out) as folder:
        chosen = choose(source, classes, "gated", dtype)
        base = _base_module(source, chosen.dtype)
        learngene_id = source.config.learngene_id
        _write_base(folder / BASE, base, learngene_id)
        names = adapter_names(list(chosen.classes))
        tailors = tailors_by_class(source.tailors)
        for name, adapter in names.items():
            state, ranks = _adapter(source, tailors[name], name, chosen.dtype)
            _write_adapter(folder / ADAPTERS / adapter, state, ranks, source, name)
        details: dict[str, Any] = {"adapters": names, "labels": {"class": CLASS_LABEL, "null": NULL_LABEL}}
        model = open_adapters(folder, names, chosen.dtype)
        export = Export.of("peft", chosen, base, _error(model, chosen, names), **details)
        return write_record(folder, export)


def adapter_names(classes: Sequence[str]) -> dict[str, str]:
    """Class -> a name that peft and file systems take: letters, digits, - and _; others get a hash of the name."""
    plain = {name: re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40] for name in classes}
    folded = Counter(short.casefold() for short in plain.values())
    return {
        name: short if short == name and folded[short.casefold()] == 1 else f"{short}-{_digest(name)}".lstrip("-")
        for name, short in plain.items()
    }


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _base_module(pool: Pool, dtype: torch.dtype) -> nn.Module:
    """The learngene alone as a plain dense backbone, label table [unused (zeros), null]."""
    config = pool.config
    settings = dict(config.backbone_config)
    if config.backbone == "DiTTransformer2DModel":
        settings["num_embeds_ada_norm"] = 1
    module = build_backbone(config.backbone, settings, ["unused"], config.label_tables, dtype=dtype)
    if config.backbone == "DiT":
        module.register_to_config(class_names=None)  # type: ignore[operator]
    state = {}
    for key, value in pool.learngene.items():
        owner, _, leaf = key.rpartition(".")
        if owner in config.label_tables and leaf == "null_row":
            state[f"{owner}.weight"] = torch.stack([torch.zeros_like(value), value])
        elif owner not in config.ranks or leaf == "bias":
            state[key] = value
    for target, ranks in config.ranks.items():
        parts = [part.to(torch.float64) for part in layer_components(pool.learngene, target, ranks)]
        state[f"{target}.weight"] = torch.cat([compose(part) for part in parts])
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True)
    return module.requires_grad_(False).eval()


def _write_base(folder: Path, base: nn.Module, learngene_id: str) -> None:
    folder.mkdir()
    base.save_config(folder)  # type: ignore[operator]
    metadata = {**WEIGHTS_FORMAT, "learngene_id": learngene_id}
    write_safetensors(folder / WEIGHTS_FILE, base.state_dict(), metadata)


def _adapter(pool: Pool, tailor: Tailor, name: str, dtype: torch.dtype) -> tuple[State, dict[str, int]]:
    """An adapter's tensors under peft's keys, and the rank of each target."""
    state: State = {}
    ranks = {}
    for target, own in pool.config.tailor_ranks_of(name).items():
        parts = layer_components(tailor.components, target, own)
        down, up = lora_factors(parts)
        place, ranks[target] = f"base_model.model.{target}", down.shape[0]
        state[f"{place}.lora_A.weight"], state[f"{place}.lora_B.weight"] = down, up
    for table, row in tailor.row_of(name).items():
        null = pool.learngene[f"{table}.null_row"]
        state[f"base_model.model.{table}.weight"] = torch.stack([row, null])
    return {key: value.to(dtype) for key, value in state.items()}, ranks


def lora_factors(parts: Sequence[Components]) -> tuple[Tensor, Tensor]:
    """A [r, I] and B [O, r] with B A = the parts' matrices one above the other; r is the sum of their ranks."""
    down = torch.cat([part.v for part in parts])
    up = torch.block_diag(*[(part.u * part.s.unsqueeze(-1)).mT for part in parts])
    return down, up


def _write_adapter(folder: Path, state: State, ranks: Mapping[str, int], pool: Pool, name: str) -> None:
    from peft import LoraConfig

    folder.mkdir(parents=True)
    most_common = Counter(ranks.values()).most_common(1)[0][0]
    others = {re.escape(target): rank for target, rank in ranks.items() if rank != most_common}
    config = LoraConfig(
        r=most_common,
        lora_alpha=most_common,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=list(ranks),
        modules_to_save=list(pool.config.label_tables),
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
        base_model_name_or_path=f"../../{BASE}",
    )
    config.target_modules = sorted(ranks)  # a set by now, whose order would be another in every run
    config.save_pretrained(folder)
    told = {"learngene_id": pool.config.learngene_id, "class": name}
    write_safetensors(folder / ADAPTER_FILE, state, {"kindgene": json.dumps(told, sort_keys=True)})


def _error(model: Any, chosen: Chosen, names: Mapping[str, str]) -> float:
    """Of a batch in which every sample has its own adapter, and null has none."""
    (x, t, y), expected = chosen.trial()
    adapters = [BASE_ADAPTER if label == chosen.null else list(names.values())[label] for label in y.tolist()]
    labels = torch.tensor([NULL_LABEL if adapter == BASE_ADAPTER else CLASS_LABEL for adapter in adapters])
    found = output_of(lambda *inputs: model(*inputs, adapter_names=adapters), (x, t, labels))
    return checked_error("the export for peft", found, expected)
