"""To the public DiT: a state dict with the keys and shapes of its checkpoints, in one safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kindgene.files import StrPath, read_safetensors, write_safetensors
from kindgene.interop.folder import Export, whole_folder, write_record
from kindgene.interop.public import (
    NO_GUIDANCE,
    PUBLIC_CLASSES,
    WEIGHTS_FORMAT,
    differences_of,
    judged,
    plain_dit,
    public_rows,
)
from kindgene.interop.source import Source, choose
from kindgene.models.blocks import NORM_EPS
from kindgene.models.dit import DiT

WEIGHTS_FILE = "model.safetensors"
LABEL_TABLE = "y_embedder.embedding_table.weight"
FIXED = {"time_frequencies": "dit", "mlp_norm_eps": NORM_EPS}
"""What the public DiT does, whatever the checkpoint."""


def export_dit(
    source: Source,
    out: StrPath,
    classes: Sequence[str] | None = None,
    *,
    dtype: str | None = None,
    approximate: bool = False,
) -> Export:
    """Writes one class of a pool (or a plain DiT) as the public DiT knows it.

    The label table has 1001 rows (see `public.py`), so the file fits the public model with its own number of classes.
    It is checked by loading it strictly into a DiT that computes as the public one does. That one divides time
    frequencies by 128 and has 1e-6 in its norms: a model that does not is refused unless `approximate`, and then the
    error is measured. Raises ValueError for what cannot be exported, with nothing written.
    """
    with whole_folder(out) as folder:
        chosen = choose(source, classes, "dense", dtype)
        model = plain_dit(chosen)
        state = dict(model.state_dict())
        state[LABEL_TABLE] = public_rows(state[LABEL_TABLE], chosen.null is not None)
        write_safetensors(folder / WEIGHTS_FILE, state, WEIGHTS_FORMAT)
        twin = public_twin(model, folder / WEIGHTS_FILE)
        error, reasons = judged(chosen, twin, differences_of(model, FIXED), approximate, "the public DiT")
        notes = [NO_GUIDANCE] if chosen.null is None else []
        return write_record(folder, Export.of("dit", chosen, twin, error, reasons, notes))


def public_twin(model: DiT, weights: Path) -> DiT:
    """A DiT of the model's sizes that computes as the public one does, with these weights, loaded strictly."""
    own = {key: value for key, value in model.config.items() if not key.startswith("_") and key != "class_names"}
    with torch.device("meta"):
        twin: DiT = DiT(**{**own, **FIXED, "num_classes": PUBLIC_CLASSES, "null_row": True})
    twin.load_state_dict(read_safetensors(weights), strict=True, assign=True)
    return twin
