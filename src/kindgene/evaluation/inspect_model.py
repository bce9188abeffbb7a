"""A saved DiT's folder, inspected: dense, or merged into thin pairs; its matrices as it has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kindgene.core.components import Components
from kindgene.evaluation.inspection import ClassFacts, Inspection
from kindgene.evaluation.layers import measure
from kindgene.evaluation.matrices import Matrix, plain_matrices
from kindgene.models.dit import DiT


def inspect_model(root: Path, classes: Sequence[str] | None, listing: bool) -> Inspection:
    """Loads and measures a DiT. Raises ValueError if classes are asked for and where there are no weights."""
    if classes is not None:
        raise ValueError(f"{root} holds a plain DiT: it has no tailors to choose by class")
    files = list(root.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{root} holds a DiT's config.json, but no weights (*.safetensors)")
    model: DiT = DiT.from_pretrained(root)
    matrices = plain_matrices(model.state_dict(), model, str(root))
    return Inspection(
        path=str(root),
        kind="model",
        backbone="DiT",
        canonical=False,
        parameters=sum(value.numel() for value in model.parameters()),
        learngene_parameters=None,
        bytes=sum(file.stat().st_size for file in files),
        ranks=_ranks(matrices),
        classes={
            name: ClassFacts(parameters=model.config.hidden_size, tailor_ranks=None) for name in model.class_names or ()
        },
        tailor_count=0,
        record={"num_classes": model.num_classes, "null_row": model.null_class is not None},
        structures=[] if listing else [measure("saved", matrices, [])],
    )


def _ranks(matrices: Sequence[Matrix]) -> dict[str, list[int | None]]:
    """Target -> the rank of each thin pair; None where a part is dense."""
    ranks: dict[str, list[int | None]] = {}
    for matrix in matrices:
        rank = matrix.shared.rank if isinstance(matrix.shared, Components) else None
        ranks.setdefault(matrix.target, []).append(rank)
    return ranks
