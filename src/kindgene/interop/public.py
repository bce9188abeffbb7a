"""What exports to software that was written for ImageNet have in common: its label rows, and what it does otherwise.

diffusers' `DiTPipeline` asks for the null class by the literal label 1000, and the public DiT's scripts do so too, so a
label table for them has 1001 rows, whatever the number of classes: the classes first, the null row at 1000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from kindgene.interop.check import Model, checked_error, output_of, relative_error
from kindgene.interop.source import Chosen
from kindgene.models.dit import DiT

PUBLIC_CLASSES = 1000
WEIGHTS_FORMAT = {"format": "pt"}
"""What other libraries look for in a safetensors file's metadata."""

NO_GUIDANCE = "no guidance: one merged class has no null class, so any guidance scale gives the same as none"

Differences = Mapping[str, tuple[object, object]]
"""Name of a setting -> (the model's, the other software's)."""


def public_rows(table: Tensor, null_row: bool) -> Tensor:
    """A table [C + null, D] with 1001 rows: classes 0 .. C - 1, null at 1000.

    Without a null row (a merged model), the class itself stands at 1000, so that guidance changes nothing: the
    learngene's own prediction, which guidance needs, is not in a merged model. Rows that nobody asks for repeat that of
    1000. Raises ValueError for more than 1000 classes, and for several without a null row.
    """
    classes = table.shape[0] - int(null_row)
    if classes > PUBLIC_CLASSES:
        raise ValueError(
            f"this model has {classes} classes; software written for ImageNet takes label {PUBLIC_CLASSES} for the "
            f"null class, so it has room for {PUBLIC_CLASSES}"
        )
    if classes > 1 and not null_row:
        raise ValueError(f"this model has {classes} classes and no null row, which label {PUBLIC_CLASSES} would need")
    last = table[-1:].expand(PUBLIC_CLASSES + 1 - classes, -1)
    return torch.cat([table[:classes], last])


def plain_dit(chosen: Chosen) -> DiT:
    """The chosen model, which must be a DiT of plain linear layers."""
    model: Any = chosen.model
    if not isinstance(model, DiT):
        raise ValueError(f"this export needs a DiT of ours; the pool's backbone is a {type(model).__name__}")
    if model.config.low_rank:
        raise ValueError("this DiT keeps thin pairs, which other software does not know: export its pool instead")
    return cast(DiT, model)


def differences_of(model: DiT, fixed: Mapping[str, object]) -> Differences:
    """The settings that some software fixes otherwise than this model has them."""
    return {name: (model.config[name], value) for name, value in fixed.items() if model.config[name] != value}


def judged(
    chosen: Chosen, twin: Model, differences: Differences, approximate: bool, software: str
) -> tuple[float, list[str]]:
    """The measured error of `twin`, as the software runs it, and why it is more than rounding.

    Raises ValueError for a model that the software runs otherwise, unless `approximate`.
    """
    (x, t, y), expected = chosen.trial()
    if chosen.null is not None:
        y = torch.where(y == chosen.null, PUBLIC_CLASSES, y)
    found = output_of(twin, (x, t, y))
    if not differences:
        return checked_error(f"the export for {software}", found, expected), []
    error = relative_error(found, expected)
    reasons = [f"{name} is {own!r} here, {other!r} in {software}" for name, (own, other) in differences.items()]
    if not approximate:
        raise ValueError(
            f"{software} would run this model otherwise ({'; '.join(reasons)}): its output would be off by {error:.2g} "
            "(relative, measured); ask for an approximate export (--approximate) to get it all the same"
        )
    return error, reasons
