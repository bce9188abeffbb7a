"""A model made decomposable: the converted module, its tailor bank and its gate, under one forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kindgene.core.bank import GatheredRows, TailorBank
from kindgene.core.config import KindConfig
from kindgene.core.gate import Gate
from kindgene.core.linear import ClassRows, KindLinear

if TYPE_CHECKING:
    from kindgene.pool.pool import Pool


class Decomposable(nn.Module):
    """A module whose targets are learngene components and tailors behind one class gate.

    Call it as the module is called: the gate follows the labels, class ids [B] (null: `null_class`) or soft weights
    [B, C]. ``rows=`` (from ``model.bank.gather``) computes with gathered rows instead of the bank, for a training step;
    ``learngene_share=`` with that share of every matrix's learngene only, its first components (elastic training).
    A module without a label argument is called with the gate opened by hand: ``with model.gate(labels): model(...)``.

    `module` holds all that is shared, `bank` what belongs to classes; `kind` is the configuration it was made with,
    `class_names` the names of the labels where known, `weights` says whether training left raw or EMA weights here.
    """

    def __init__(self, module: nn.Module, bank: TailorBank, gate: Gate, kind: KindConfig, label_argument: str) -> None:
        super().__init__()
        self.module, self.bank, self.kind = module, bank, kind
        self.gate = gate
        self.gate.bind(bank.select)
        self.label_argument = label_argument
        self._label_position = _position(module, label_argument)
        names = getattr(getattr(module, "config", None), "class_names", None)
        self.class_names: tuple[str, ...] | None = tuple(names) if names else None
        self.weights: Literal["raw", "ema"] = "raw"

    def forward(self, *args: Any, rows: GatheredRows | None = None, learngene_share: float = 1.0, **kwargs: Any) -> Any:
        labels = self._labels(args, kwargs)
        if labels is None:
            if rows is not None or learngene_share != 1.0:
                raise ValueError(
                    "rows= and learngene_share= need the labels in the same call; by hand: `with model.gate(labels, "
                    "rows, learngene_share): ...`"
                )
            return self.module(*args, **kwargs)  # the gate is open, or the first gated layer says that it is not
        selection = self.bank.select(labels, rows, learngene_share)
        _check_batch(selection.batch, labels, (*args, *kwargs.values()))
        if labels.is_floating_point():  # the module itself knows ids only; what it would look up, the gate decides
            if not self.bank.labels.sizes:
                raise ValueError(
                    f"{type(self.module).__name__} reads the labels itself, which soft gate weights are not: name its "
                    "label tables as class_rows, or open the gate by hand: `with model.gate(weights): ...`"
                )
            args, kwargs = self._replace_labels(
                torch.zeros_like(selection.weight[:, 0], dtype=torch.long), args, kwargs
            )
        with self.gate.opened(selection):
            return self.module(*args, **kwargs)

    @property
    def config(self) -> Any:
        """The backbone's own configuration."""
        return self.module.config

    @property
    def num_classes(self) -> int:
        return self.bank.num_classes

    @property
    def null_class(self) -> int:
        """The label that closes the gate: learngene only, the unconditional model."""
        return self.bank.num_classes

    @property
    def layers(self) -> dict[str, KindLinear]:
        """The gated linear layers by module name."""
        return {name: child for name, child in self.module.named_modules() if isinstance(child, KindLinear)}

    @property
    def label_tables(self) -> dict[str, ClassRows]:
        """The label tables behind the gate by module name."""
        return {name: child for name, child in self.module.named_modules() if isinstance(child, ClassRows)}

    def freeze_learngene(self) -> Decomposable:
        """Makes all that is shared untrainable (null row included): tailors and label rows are left to train."""
        self.module.requires_grad_(False)
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Turns on the backbone's own checkpointing (diffusers' protocol) in the form that carries the gate."""
        enable = getattr(self.module, "enable_gradient_checkpointing", None)
        if enable is None:
            raise ValueError(
                f"{type(self.module).__name__} does not follow diffusers' checkpointing protocol; turn its own "
                "checkpointing on with use_reentrant=False and context_fn=model.gate.checkpoint_contexts "
                "(transformers: gradient_checkpointing_enable(gradient_checkpointing_kwargs={...}))"
            )
        enable(self.gate.checkpoint)

    def decompose(self, class_names: Sequence[str] | None = None, provenance: Mapping[str, Any] | None = None) -> Pool:
        """Takes the model apart into a `Pool`: canonical learngene and one tailor a class. The model is not changed."""
        from kindgene.pool.pool import (
            Pool,  # the one upward import: the public API puts this verb on the model
        )

        return Pool.from_model(self, class_names=class_names, provenance=provenance)

    def _labels(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        if not self.label_argument:
            return None
        labels = kwargs.get(self.label_argument)
        if labels is None and self._label_position is not None and len(args) > self._label_position:
            labels = args[self._label_position]
        return labels

    def _replace_labels(
        self, labels: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.label_argument in kwargs:
            return args, {**kwargs, self.label_argument: labels}
        position = self._label_position
        assert position is not None, "labels come by position or by keyword"
        return (*args[:position], labels, *args[position + 1 :]), kwargs


def _check_batch(batch: int, labels: Tensor, values: tuple[Any, ...]) -> None:
    """Refuses labels of another batch size than the first tensor beside them."""
    for value in values:
        if isinstance(value, Tensor) and value is not labels:
            if value.dim() and value.shape[0] != batch:
                raise ValueError(f"labels are for a batch of {batch}, but the batch is of {value.shape[0]}")
            return


def _position(module: nn.Module, argument: str) -> int | None:
    """Where `argument` stands among the forward's positional arguments; None where it is not one of them."""
    for position, (name, parameter) in enumerate(inspect.signature(module.forward).parameters.items()):
        if name == argument and parameter.kind is not parameter.KEYWORD_ONLY:
            return position
    return None
