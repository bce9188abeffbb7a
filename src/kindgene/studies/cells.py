"""A study cut into cells: each is computed once, kept as a JSON file, and found again by whatever command comes next.

A cell is named like a path, ``dense/0.002``, and needs nothing but what other cells leave on the same disk, which it
has computed where they are missing: so cells can be run in any order, by separate commands, in short leases of a
machine. What may leave the machine is small: JSON, and a PNG where samples were drawn. Run again, a cell gives the same
figures on the same machine and versions; only seconds differ. Several commands may run at once: a cell that one of them
is computing, the others wait for.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypedDict, TypeVar, Unpack

import filelock

from kindgene.files import StrPath, read_json, write_json
from kindgene.progress import NoProgress, Progress
from kindgene.studies.source import Source

ShowProgress = Callable[[str], Progress]


class Settings(Protocol):
    """A frozen data class of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Place(TypedDict, total=False):
    """Whose cells: of a `scale` ("mini" if not given) and a `seed` (0).

    show: makes what a training reports to; cache: where what is rendered or learned once is kept; source: the data,
    where they do not come with the package.
    """

    scale: str
    seed: int
    show: ShowProgress | None
    cache: StrPath | None
    source: Source | None


_FEW = 3
"""Cells of which no pace is told: a study begins with short ones."""

_Settings = TypeVar("_Settings", bound=Settings)


def settings_of(study: str, scales: Mapping[str, _Settings], scale: str) -> _Settings:
    """The settings of a study's scale. Raises ValueError naming the scales there are."""
    if scale not in scales:
        raise ValueError(f"the {study} study has no scale {scale!r}; there is {', '.join(scales)}")
    return scales[scale]


class Cells(ABC):
    """One seed of a study, under ``FOLDER/STUDY/SCALE-seedN``; other studies and seeds of the same FOLDER are found.

    A study's own class is made with the folder and a `Place`, and hands on its table of scales.
    """

    study: ClassVar[str]
    settings: Any

    def __init__(self, folder: StrPath, scales: Mapping[str, Settings], **place: Unpack[Place]) -> None:
        self.root, self.place = Path(folder), place
        self.scale, self.seed, self.cache = place.get("scale", "mini"), place.get("seed", 0), place.get("cache")
        self.settings = settings_of(self.study, scales, self.scale)
        self.folder = self.root / self.study / f"{self.scale}-seed{self.seed}"
        self.show: ShowProgress = place.get("show") or (lambda cell: NoProgress())
        self.told = plain(self.settings)

    def of_seed(self, seed: int) -> Self:
        """The same study with another seed."""
        make: Any = type(self)
        return self if seed == self.seed else make(self.root, **{**self.place, "seed": seed})

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """All cells, in an order in which each finds what it needs."""

    @abstractmethod
    def compute(self, name: str) -> dict[str, Any]:
        """The figures of a cell, plain data."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """All figures together, plain data; what is missing is computed first."""

    def outlook(self) -> dict[str, Any]:
        """What can be said before anything is computed, plain data."""
        return {"cells": len(self.names())}

    def file(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.json"

    def picture(self, name: str) -> Path:
        """Where a cell keeps its samples, if it draws any."""
        return self.folder / "cells" / f"{name}.png"

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    def get(self, name: str) -> dict[str, Any]:
        """A cell's figures: those that are kept, or else computed now and kept; waits where another process is at it.

        Raises ValueError for a file that is of other settings: results of two studies are not mixed.
        """
        self.finish(name)
        file = self.file(name)
        found = read_json(file)
        if not isinstance(found, dict) or found.get("settings") != self.told:
            raise ValueError(f"{file} was computed with other settings; choose another folder, or remove it")
        result: dict[str, Any] = found["result"]
        return result

    def finish(self, name: str, *, wait: bool = True) -> bool:
        """Computes a cell that is not there yet. False where another process is at it and `wait` is not wanted."""
        file = self.file(name)
        if file.exists():
            return True
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = filelock.FileLock(file.with_suffix(".lock")).acquire(blocking=wait)
        except filelock.Timeout:
            return False
        with held:
            if not file.exists():
                write_json(file, {"settings": self.told, "result": self.compute(name)})
        return True


def run_cells(
    seeds: Sequence[Cells],
    wanted: str = "*",
    minutes: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[int, int]:
    """Computes the cells whose name matches the pattern `wanted`; after so many `minutes` none is begun any more.

    Cells that another process is at come last. `tell` hears, after each, how many are left and about how long they
    take. Returns how many cells of all are finished, and how many there are. Raises ValueError where none is wanted.
    """
    chosen = [(cells, name) for cells in seeds for name in cells.names() if fnmatchcase(name, wanted)]
    if not chosen:
        some = ", ".join(seeds[0].names()[:3])
        raise ValueError(f"no cell matches {wanted!r}; cells are named like {some}")
    missing = [(cells, name) for cells, name in chosen if not cells.has(name)]
    for cells, name in chosen:
        if (cells, name) not in missing:
            cells.get(name)  # of these settings, or an error before any work
    begun = time.monotonic()
    until = float("inf") if minutes is None else begun + 60 * minutes
    for wait in (False, True):
        for cells, name in missing:
            if not cells.has(name) and time.monotonic() < until and cells.finish(name, wait=wait):
                left = sum(not cells.has(name) for cells, name in missing)
                tell(_told(left, len(missing) - left, time.monotonic() - begun))
    return finished(seeds)


def finished(seeds: Sequence[Cells]) -> tuple[int, int]:
    """How many cells of all are finished, and how many there are."""
    every = [cells.has(name) for cells in seeds for name in cells.names()]
    return sum(every), len(every)


def _told(left: int, done: int, seconds: float) -> str:
    """``12 cells left, about 0:34:00`` at the pace of those that were computed, once these are a few."""
    if not left:
        return "no cell left"
    cells = "1 cell left" if left == 1 else f"{left} cells left"
    return cells if done < _FEW else f"{cells}, about {timedelta(seconds=round(left * seconds / done))}"


def plain(settings: Any) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return found
