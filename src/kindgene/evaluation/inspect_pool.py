"""A pool's folder, inspected. The listing reads config.json and the learngene's header: no tensor, whatever C is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kindgene.evaluation.inspection import MEASURED, ClassFacts, Inspection
from kindgene.evaluation.layers import evenly_spaced, measure
from kindgene.evaluation.matrices import pool_matrices
from kindgene.files import read_shapes
from kindgene.pool import hub
from kindgene.pool.config import PoolConfig
from kindgene.pool.folder import LEARNGENE_FILE, read_config
from kindgene.pool.names import known_names
from kindgene.pool.pool import Pool

Shapes = Mapping[str, tuple[int, ...]]


def inspect_pool(root: Path, classes: Sequence[str] | None, listing: bool) -> Inspection:
    """Lists a pool and, unless only a listing is wanted, reads and measures the tailors of `classes`.

    Raises ValueError for unknown classes and for a pool that is damaged, or lacks a file that is to be measured.
    """
    config = read_config(root)
    structures = []
    if not listing:
        pool = Pool.from_pretrained(root, _spread(config) if classes is None else classes)
        config = pool.config
        structures = [measure(config.weights, pool_matrices(pool), [tailor.classes for tailor in pool.tailors])]
    elif classes is not None:
        known_names(config.classes, classes)
    source = root / LEARNGENE_FILE
    shapes = read_shapes(source)
    shared = sum(math.prod(shape) for shape in shapes.values())
    row = sum(math.prod(_shape(shapes, f"{table}.null_row", 1, source)) for table in config.label_tables)
    widths = {
        target: sum(_shape(shapes, f"{target}.{factor}", 2, source)[1] for factor in "uv") for target in config.ranks
    }
    own = {name: _numbers(config, name, widths) for name in config.classes}
    tailors = _tailors(config)
    sizes = {file: (root / file).stat().st_size for file in tailors if (root / file).is_file()}
    return Inspection(
        path=str(root),
        kind="pool",
        backbone=config.backbone,
        canonical=True,
        parameters=shared + sum(own[name] for name in tailors.values()) + row * len(own),
        learngene_parameters=shared,
        bytes=source.stat().st_size + sum(sizes.values()),
        ranks=config.ranks,
        classes={
            name: ClassFacts(
                parameters=own[name] + row,
                tailor_ranks=entry.tailor_ranks,
                file=entry.file,
                bytes=sizes.get(entry.file),
            )
            for name, entry in config.classes.items()
        },
        tailor_count=len(tailors),
        record={
            "weights": config.weights,
            "generation": config.generation,
            "learngene_id": config.learngene_id,
            "provenance": config.provenance,
        },
        structures=structures,
    )


def inspect_repository(repository: str, classes: Sequence[str] | None, listing: bool) -> Inspection:
    """The same for a pool on the Hub: fetches the learngene, and the tailors that are measured; sizes are of these."""

    def wanted(config: PoolConfig) -> Sequence[str]:
        if classes is not None:
            names = known_names(config.classes, classes)
            return () if listing else names
        return () if listing else _spread(config) or tuple(config.classes)

    return replace(inspect_pool(hub.fetch(repository, wanted), classes, listing), path=repository)


def _tailors(config: PoolConfig) -> dict[str, str]:
    """File of each tailor -> the first class that it serves."""
    files: dict[str, str] = {}
    for name, entry in config.classes.items():
        files.setdefault(entry.file, name)
    return files


def _spread(config: PoolConfig) -> list[str] | None:
    """A class of each tailor to look at; None where these are all."""
    names = list(_tailors(config).values())
    return [names[index] for index in evenly_spaced(len(names), MEASURED)] if len(names) > MEASURED else None


def _numbers(config: PoolConfig, name: str, widths: Mapping[str, int]) -> int:
    """How many numbers the components of a class's tailor are; `widths`: target -> I + O."""
    return sum(sum(ranks) * (widths[target] + 1) for target, ranks in config.tailor_ranks_of(name).items())


def _shape(shapes: Shapes, key: str, dimensions: int, source: Path) -> tuple[int, ...]:
    if len(shapes.get(key, ())) != dimensions:
        raise ValueError(f"{source}: {key} is missing or has another shape than a pool's")
    return shapes[key]
