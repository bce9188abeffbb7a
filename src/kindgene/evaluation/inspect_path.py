"""`inspect_path`: what is in a folder (a pool, a saved DiT, a run, a checkpoint), listed and measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kindgene.evaluation.inspection import Inspection
from kindgene.files import read_json
from kindgene.pool.hub import is_repository


def inspect_path(path: str | Path, classes: Sequence[str] | None = None, *, listing: bool = False) -> Inspection:
    """Lists and measures the folder of a pool, of a saved DiT, of a run (its latest whole checkpoint), or a checkpoint.

    A pool may be on the Hub (``user/name``): then only what is looked at is fetched. `classes` are those whose tailors
    are measured (None: all, or `MEASURED` of them); with `listing` nothing is, and of a pool no tensor is read. Raises
    ValueError for any other path, for classes that are not there, and for files that are damaged, naming them.
    """
    # Each kind of folder needs other libraries: a pool neither diffusers nor accelerate, which take seconds to import.
    root = Path(path)
    if not root.exists() and is_repository(str(path)):
        from kindgene.evaluation.inspect_pool import inspect_repository

        return inspect_repository(str(path), classes, listing)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give a pool, a saved DiT, a run or a checkpoint")
    if (root / "config.json").is_file():
        config = read_json(root / "config.json")
        kind = config.get("_class_name") if isinstance(config, dict) else None
        if kind is None:
            from kindgene.evaluation.inspect_pool import inspect_pool

            return inspect_pool(root, classes, listing)
        if kind != "DiT":
            raise ValueError(f"{root} holds a {kind}; of saved models only kindgene's own DiT can be inspected")
        from kindgene.evaluation.inspect_model import inspect_model

        return inspect_model(root, classes, listing)
    if (root / "state.json").is_file():
        from kindgene.evaluation.inspect_run import inspect_checkpoint

        return inspect_checkpoint(root, classes, listing)
    if (root / "run.json").is_file():
        from kindgene.evaluation.inspect_run import inspect_run

        return inspect_run(root, classes, listing)
    raise ValueError(f"{root} holds neither a pool, nor a saved DiT, nor a run, nor a checkpoint")
