"""`inspect_path`: what is in a folder (a pool, a saved DiT, a run, a checkpoint), listed and measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kindgene.core.components import Components
from kindgene.evaluation.inspect_pool import inspect_pool
from kindgene.evaluation.inspect_run import inspect_checkpoint, inspect_run
from kindgene.evaluation.inspection import ClassFacts, Inspection, file_size
from kindgene.evaluation.layers import measure
from kindgene.evaluation.matrices import Matrix, plain_matrices
from kindgene.files import read_json
from kindgene.models.dit import DiT


def inspect_path(path: str | Path, classes: Sequence[str] | None = None, *, listing: bool = False) -> Inspection:
    """Lists and measures the folder of a pool, of a saved DiT, of a run (its latest whole checkpoint), or a checkpoint.

    `classes` are those whose tailors are measured (None: all, or `MEASURED` of them); with `listing` nothing is, and of
    a pool no tensor is read. Raises ValueError for any other path, for classes
    that are not there, and for files that are damaged, naming them.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give a pool, a saved DiT, a run or a checkpoint")
    if (root / "config.json").is_file():
        config = read_json(root / "config.json")
        kind = config.get("_class_name") if isinstance(config, dict) else None
        if kind is None:
            return inspect_pool(root, classes, listing)
        if kind != "DiT":
            raise ValueError(f"{root} holds a {kind}; of saved models only kindgene's own DiT can be inspected")
        return _inspect_model(root, classes, listing)
    if (root / "state.json").is_file():
        return inspect_checkpoint(root, classes, listing)
    if (root / "run.json").is_file():
        return inspect_run(root, classes, listing)
    raise ValueError(f"{root} holds neither a pool, nor a saved DiT, nor a run, nor a checkpoint")


def _inspect_model(root: Path, classes: Sequence[str] | None, listing: bool) -> Inspection:
    if classes is not None:
        raise ValueError(f"{root} holds a plain DiT: it has no tailors to choose by class")
    model: DiT = DiT.from_pretrained(root)
    matrices = plain_matrices(model.state_dict(), model, str(root))
    return Inspection(
        path=str(root),
        kind="model",
        backbone="DiT",
        canonical=False,
        parameters=sum(value.numel() for value in model.parameters()),
        learngene_parameters=None,
        bytes=sum(file_size(file) for file in root.glob("*.safetensors")),
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
