"""The backbones a pool can rebuild by itself: a fixed table, loaded through each class's own configuration.

No code is ever taken from a pool. Any other backbone is given as a module (``backbone=``), whose weights are replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TABLE: Mapping[str, str] = {
    "DiT": "kindgene.models.dit",
    "DiTTransformer2DModel": "diffusers",
    "ViTModel": "transformers",
}

OWN_ONLY = ("class_names", "low_rank", "id2label", "label2id", "attn_implementation", "experts_implementation")
"""Settings that no pool holds: names of classes, the form of another model, and names of code to be fetched."""

VIT_ARGUMENTS = ("add_pooling_layer", "use_mask_token")
"""What a ViTModel is built with besides its configuration."""

MISBUILT = (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError)
"""What the libraries raise for a configuration that makes no sense."""


def describe_backbone(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """Class name and plain configuration of a backbone ({} for one that is not in the table)."""
    kind = _kind(module)
    if kind not in TABLE:
        return kind, {}
    known: Any = module
    if kind != "ViTModel":
        return kind, _plain(known.config)
    parts = (known.pooler is not None, known.embeddings.mask_token is not None)
    return kind, {**_plain(known.config.to_dict()), **dict(zip(VIT_ARGUMENTS, parts, strict=True))}


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

    Its weights are about to be replaced: they have no values yet. `low_rank` is installed where the model is to keep
    thin pairs. Raises ValueError for a backbone of another class, or that cannot be built from the config.
    """
    own = {"num_classes": len(class_names), "class_names": list(class_names), "null_row": null_row}
    if backbone is not None and _kind(backbone) != kind:
        raise ValueError(f"this pool was made from a {kind}; backbone= is a {_kind(backbone)}")
    if backbone is None and kind not in TABLE:
        raise ValueError(f"backbone {kind} is not one that pools rebuild ({', '.join(TABLE)}); pass backbone=module")
    with torch.random.fork_rng(devices=[]), Unfilled():  # what draws all the same does so from a copy
        if backbone is not None:
            module: Any = copy.deepcopy(backbone)
        else:
            module = _from_config(kind, {**_plain(config), **own} if kind == "DiT" else _plain(config))
        _resize_tables(module, label_tables, len(class_names) + int(null_row))
        if low_rank is not None:
            from kindgene.models.low_rank import install_low_rank

            install_low_rank(module, low_rank)
    if kind == "DiT":
        module.register_to_config(**own, low_rank=None if low_rank is None else dict(low_rank))
    return cast(module, dtype)


class Unfilled(TorchFunctionMode):
    """Within it parameters get no first values, which take longer than the weights that replace them at once."""

    _FILLS = (Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        tensor = args[0] if args else named.get("tensor")
        fills = func in self._FILLS or getattr(func, "__module__", None) == nn.init.__name__
        return tensor if fills and isinstance(tensor, nn.Parameter) else func(*args, **named)


def _kind(module: nn.Module) -> str:
    """The name of a backbone's class; with its module where another class of that name is in the table."""
    name, home = type(module).__name__, type(module).__module__
    another = name in TABLE and not f"{home}.".startswith(f"{TABLE[name]}.")
    return f"{home}.{name}" if another else name


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in OWN_ONLY}


def _from_config(kind: str, config: dict[str, Any]) -> nn.Module:
    try:
        if kind != "ViTModel":
            module: nn.Module = _class(kind).from_config(config)
            return module
        arguments = {name: config.pop(name) for name in VIT_ARGUMENTS if name in config}
        module = _class(kind)(import_module("transformers").ViTConfig.from_dict(config), **arguments)
    except MISBUILT as error:
        told = " ".join(str(error).split())
        raise ValueError(f"the pool's backbone_config does not make a {kind}: {told}") from error
    return module


def example_inputs(kind: str, module: nn.Module, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Inputs of one forward of one sample (class 0), by the names of the backbone's arguments.

    Raises ValueError for a backbone that is not in the table.
    """
    if kind not in TABLE:
        raise ValueError(f"the inputs of a {kind} are not known, so its multiply-adds and latency cannot be counted")
    config: Any = module.config
    dtype = next(value.dtype for value in module.parameters() if value.is_floating_point())
    if kind == "ViTModel":
        image = torch.zeros(1, config.num_channels, config.image_size, config.image_size, dtype=dtype, device=device)
        return {"pixel_values": image}
    size = config.input_size if kind == "DiT" else config.sample_size
    image = torch.zeros(1, config.in_channels, size, size, dtype=dtype, device=device)
    label = torch.zeros(1, dtype=torch.long, device=device)
    names = ("x", "t", "y") if kind == "DiT" else ("hidden_states", "timestep", "class_labels")
    return dict(zip(names, (image, label, label), strict=True))


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """To a dtype by torch's own method: diffusers' override logs a warning about float32 modules that do not exist."""
    return nn.Module.to(module, dtype)


def _class(kind: str) -> Any:
    return getattr(import_module(TABLE[kind]), kind)


def _resize_tables(module: nn.Module, tables: Sequence[str], rows: int) -> None:
    modules: Mapping[str, Any] = dict(module.named_modules())
    for name in tables:
        if type(modules.get(name)) is not nn.Embedding:
            raise ValueError(f"the pool's label table {name} is no nn.Embedding of this {type(module).__name__}")
        old = modules[name]
        if old.num_embeddings != rows:
            table = nn.Embedding(rows, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
            module.set_submodule(name, table)
        parent = module.get_submodule(name.rpartition(".")[0])
        if isinstance(getattr(parent, "dropout_prob", None), float):
            parent.dropout_prob = 0.0  # type: ignore[assignment]  # a backbone never drops labels itself


def floating_dtype(state: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The dtype a state's weights are kept in."""
    return next(value.dtype for value in state.values() if value.is_floating_point())
