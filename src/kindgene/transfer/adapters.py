"""Adapters of peft on the frozen dense DiT: LoRA, DoRA, PiSSA, LoHa and OFT, each through peft's own configuration.

Sources: LoRA arXiv 2106.09685, DoRA 2402.09353, PiSSA 2404.02948, LoHa 2108.06098 (FedPara) as in LyCORIS, OFT
2306.07280. Adapters are injected into the model itself, which so stays a DiT. Ours: which matrices (those that KIND
decomposes; a fused qkv is one), alpha = r (scaling 1 at every rank), a trained label table whose new rows start at the
null row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from kindgene.models.dit import DiT
from kindgene.transfer.dense import LABEL_DROP
from kindgene.transfer.new_classes import (
    LABEL_TABLE,
    TARGETS,
    Matrix,
    Targets,
    check_alive,
    for_new_classes,
    target_layers,
)
from kindgene.transfer.transfer import Transfer, drawing

ADAPTER = "default"
"""The adapter's name within peft; it is part of the parameters' names."""


@dataclass(frozen=True)
class Adapter:
    """One of peft's methods.

    config: the name of its configuration class; settings: its arguments for a rank; numbers: how many it trains for a
    matrix and a rank; alive: it cannot start from a matrix, or (DoRA) a row, of zeros; changes_base: it takes something
    out of the base weight, which then must be known.
    """

    config: str
    settings: Callable[[int], dict[str, Any]]
    numbers: Callable[[Matrix, int], int]
    needs_matrix: bool = False
    needs_rows: bool = False
    changes_base: bool = False


def _lora(rank: int) -> dict[str, Any]:
    return {"r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none"}


def _low_rank(matrix: Matrix, rank: int) -> int:
    return rank * (matrix.inputs + matrix.outputs)


ADAPTERS: Mapping[str, Adapter] = MappingProxyType(
    {
        "lora": Adapter("LoraConfig", _lora, _low_rank),
        "dora": Adapter(
            "LoraConfig",
            lambda rank: {**_lora(rank), "use_dora": True},
            lambda matrix, rank: _low_rank(matrix, rank) + matrix.outputs,
            needs_rows=True,
        ),
        "pissa": Adapter(
            "LoraConfig",
            lambda rank: {**_lora(rank), "init_lora_weights": "pissa"},
            _low_rank,
            needs_matrix=True,
            changes_base=True,
        ),
        "loha": Adapter(
            "LoHaConfig", lambda rank: {"r": rank, "alpha": rank}, lambda matrix, rank: 2 * _low_rank(matrix, rank)
        ),
        "oft": Adapter(
            "OFTConfig",
            lambda rank: {"r": 0, "oft_block_size": rank, "bias": "none"},
            lambda matrix, rank: matrix.inputs * (rank - 1) // 2,  # I / b blocks of b (b - 1) / 2
            needs_matrix=True,
        ),
    }
)


def adapter_transfer(
    method: str,
    dense: DiT,
    class_names: Sequence[str],
    rank: int,
    label_drop: float = LABEL_DROP,
    *,
    targets: Targets = TARGETS,
    generator: torch.Generator | None = None,
) -> Transfer:
    """The dense model, frozen, with adapters of `rank` (OFT: blocks of that size) and a trainable label table.

    `dense` is not changed. Needs peft (``pip install 'kindgene[peft]'``). Raises ValueError for an unknown method, an
    impossible rank, and weights that the method cannot start from.
    """
    peft = _peft()
    if method not in ADAPTERS:
        raise ValueError(f"no adapter method {method!r}; there is {', '.join(ADAPTERS)}")
    adapter = ADAPTERS[method]
    model = for_new_classes(dense, class_names)
    layers = {name: layer for name, (layer, _) in target_layers(model, targets).items()}
    shapes = [Matrix(layer.in_features, layer.out_features) for layer in layers.values()]
    if rank not in adapter_ranks(method, shapes):
        raise ValueError(f"{method} cannot have rank {rank!r} here; {_offer(adapter_ranks(method, shapes))}")
    _check_weights(method, layers)
    config = getattr(peft, adapter.config)(target_modules=list(layers), **adapter.settings(rank))
    with drawing(generator):
        peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    model.get_parameter(LABEL_TABLE).requires_grad_(True)
    # Who has the base weights needs the part that was taken out of them as well: as many numbers again.
    beside = sum(adapter.numbers(shape, rank) for shape in shapes) if adapter.changes_base else 0
    return Transfer(method, model, label_drop, rank, beside, merge_adapters)


def adapter_ranks(method: str, shapes: Sequence[Matrix]) -> Sequence[int]:
    """The ranks that a method can have for these matrices, ascending: up to their width; OFT: divisors of all I."""
    if method == "oft":
        common = math.gcd(*(shape.inputs for shape in shapes))
        return [size for size in range(2, common + 1) if common % size == 0]
    return range(1, min(min(shape.inputs, shape.outputs) for shape in shapes) + 1)


def merge_adapters(model: nn.Module) -> nn.Module:
    """Folds every adapter into its layer by peft's own method, in place: the plain DiT again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in adapted.items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    return model


def _check_weights(method: str, layers: Mapping[str, nn.Linear]) -> None:
    adapter = ADAPTERS[method]
    if adapter.needs_matrix or adapter.needs_rows:
        check_alive({name: layer.weight for name, layer in layers.items()}, method)
    for name, layer in layers.items():
        if adapter.needs_rows and not bool(layer.weight.any(1).all()):
            raise ValueError(f"{method} divides by the norm of each row of {name}, and one of them is all zero")
        if method == "pissa" and layer.weight.dtype == torch.float64:
            raise ValueError("peft starts pissa from float32 or smaller weights: cast the float64 model first")


def _offer(ranks: Sequence[int]) -> str:
    listed = f"{ranks[0]} to {ranks[-1]}" if isinstance(ranks, range) else ", ".join(map(str, ranks))
    return f"it can have {listed}"


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("this needs peft: pip install 'kindgene[peft]'") from error
    return peft
