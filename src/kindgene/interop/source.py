"""What is exported: classes of a pool, or a plain DiT as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kindgene.diffusion.path import DiffusionPath
from kindgene.interop.check import Inputs, inputs_for, output_of, some_labels
from kindgene.models.dit import DiT
from kindgene.pool.backbones import cast, floating_dtype
from kindgene.pool.pool import Pool

Source = Pool | DiT
Form = Literal["gated", "merged", "dense"]

BACKBONES = ("DiT", "DiTTransformer2DModel")
DTYPES = ("float64", "float32", "bfloat16", "float16")
DIFFUSION = "diffusion"
"""Where a pool's record tells the path of a backbone that does not know it."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """A plain module or a gated model, its classes by label, and what it is compared with."""

    model: nn.Module
    classes: Mapping[str, int]
    null: int | None
    reference: nn.Module
    learngene_id: str | None

    @property
    def config(self) -> Mapping[str, Any]:
        """The backbone's own configuration."""
        config: Mapping[str, Any] = self.reference.config  # type: ignore[assignment]
        return config

    @property
    def dtype(self) -> torch.dtype:
        return floating_dtype(dict(self.model.named_parameters()))

    def trial(self) -> tuple[Inputs, Tensor]:
        """Inputs to check an export with, in the model's dtype, and the output that it should have."""
        labels = some_labels(len(self.classes), self.null)
        exact = floating_dtype(dict(self.reference.named_parameters()))
        expected = output_of(self.reference, inputs_for(self.config, labels, exact))
        return inputs_for(self.config, labels, self.dtype), expected


def choose(source: Source, classes: Sequence[str] | None, form: Form, dtype: str | None = None) -> Chosen:
    """The model to export, in `dtype` (None: as it is).

    A pool's classes, in a form of `Pool.recombine`; the reference is its gated model. A plain DiT is what it is: its
    classes are all of its own.
    """
    check_dtype(dtype)
    if isinstance(source, DiT):
        return _plain(source, classes, dtype)
    if source.config.backbone not in BACKBONES:
        raise ValueError(f"this pool's backbone is a {source.config.backbone}; exports know {', '.join(BACKBONES)}")
    names = tuple(source.classes) if classes is None else tuple(classes)
    if form != "gated" and len(names) > 1:
        raise ValueError(f"this export holds one class; {len(names)} were asked for: export each on its own")
    reference = source.recombine(names, dtype=_name(_exact(floating_dtype(source.learngene))))
    model = source.recombine(names, form=form, dtype=dtype)
    null = len(names) if form == "gated" else None
    ids = {name: label for label, name in enumerate(names)}
    return Chosen(model, ids, null, reference, source.config.learngene_id)


def check_dtype(dtype: str | None) -> None:
    """Raises ValueError for a dtype that nothing is exported in."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def diffusion_path(source: Source) -> DiffusionPath:
    """The path a model was made for. Raises ValueError where neither its configuration nor its record tells it."""
    if isinstance(source, DiT):
        return DiffusionPath.of(source)
    config = source.config
    told = config.backbone_config if config.backbone == "DiT" else config.provenance.get(DIFFUSION, {})
    return DiffusionPath.of(told)


def _plain(model: DiT, classes: Sequence[str] | None, dtype: str | None) -> Chosen:
    names = model.class_names or tuple(str(label) for label in range(model.num_classes))
    if classes is not None and tuple(classes) != names:
        raise ValueError("a plain DiT is exported with all classes that it has: leave out classes")
    own = floating_dtype(dict(model.named_parameters()))
    ids = {name: label for label, name in enumerate(names)}
    return Chosen(_copy(model, dtype or _name(own)), ids, model.null_class, _copy(model, _name(_exact(own))), None)


def _copy(model: DiT, dtype: str) -> nn.Module:
    return cast(copy.deepcopy(model), getattr(torch, dtype)).cpu().requires_grad_(False).eval()


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What a reference is computed in: half precision is compared with float32."""
    return torch.promote_types(dtype, torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
