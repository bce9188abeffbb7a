"""The classes of a pool as config.json lists them: each is checked when it is asked for.

A pool may have tens of thousands of classes, and most who open it want a few: what is not asked for costs nothing but
its JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kindgene.pool.names import TAILOR_FILE, check_class_names

Ranks = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ClassEntry:
    """Where a class lives: its tailor's file, the file's hash, the tailor's ranks and its label row in that file.

    `tailor_ranks` is one int where every part of every target has it, else target -> rank of each part. A
    class that is in memory only has no file ("").
    """

    file: str
    sha256: str
    tailor_ranks: int | Ranks
    row: int


class ClassTable(Mapping[str, ClassEntry]):
    """Class name -> entry, out of the JSON object `raw`; `ranks` are the learngene's, `source` is named in errors."""

    def __init__(self, raw: Mapping[str, Any], ranks: Ranks, source: str) -> None:
        self._raw, self._ranks, self._source = raw, ranks, source
        self._read: dict[str, ClassEntry] = {}

    def __getitem__(self, name: str) -> ClassEntry:
        if name not in self._read:
            value = self._raw[name]
            try:
                check_class_names((name,))
            except ValueError as error:
                raise ValueError(f"{self._source}: {error}") from error
            self._read[name] = read_entry(value, self._ranks, f"{self._source}: class {name!r}")
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __repr__(self) -> str:
        return f"ClassTable({len(self)} classes of {self._source})"

    def members(self, file: str) -> tuple[str, ...]:
        """The classes that a tailor's file serves, in the order of its label rows.

        Raises ValueError where they do not agree about the file, or about their rows in it.
        """
        names = self._names_of_file.get(file, ())
        return members({name: self[name] for name in names}, file, self._source)

    def check(self) -> None:
        """Reads every entry. Raises ValueError, naming the source, for the first that is wrong."""
        for file in dict.fromkeys(self[name].file for name in self):
            self.members(file)

    @cached_property
    def _names_of_file(self) -> dict[Any, list[str]]:
        names: dict[Any, list[str]] = {}
        for name, value in self._raw.items():
            file = value.get("file") if isinstance(value, dict) else None
            names.setdefault(file if isinstance(file, str) else None, []).append(name)
        return names


def members(classes: Mapping[str, ClassEntry], file: str, source: str = "config.json") -> tuple[str, ...]:
    """The classes of a file in the order of their rows, 0 to one less than there are. ValueError if they disagree."""
    own = {name: entry for name, entry in classes.items() if entry.file == file}
    entries = list(own.values())
    if sorted(entry.row for entry in entries) != list(range(len(entries))):
        raise ValueError(f"{source}: the classes of {file} do not have the rows 0 to {len(entries) - 1}")
    if any((e.sha256, e.tailor_ranks) != (entries[0].sha256, entries[0].tailor_ranks) for e in entries):
        raise ValueError(f"{source}: the classes of {file} differ in its sha256 or tailor_ranks")
    return tuple(sorted(own, key=lambda name: own[name].row))


def compact_ranks(ranks: Ranks) -> int | Ranks:
    """One int where all ranks are equal, else the ranks."""
    values = {rank for parts in ranks.values() for rank in parts}
    return values.pop() if len(values) == 1 else dict(ranks)


def read_entry(value: Any, ranks: Ranks, where: str) -> ClassEntry:
    """One class as config.json has it. Raises ValueError beginning with `where` for what is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, found {short(value)}")
    file = take(value, "file", str, where)
    if not TAILOR_FILE.fullmatch(file):
        raise ValueError(f"{where}: {short(file)} is not the path of a tailor's file inside the pool")
    tailor_ranks: int | Ranks = take(value, "tailor_ranks", (int, dict), where)
    if isinstance(tailor_ranks, dict):
        tailor_ranks = read_ranks(tailor_ranks, f"{where}: tailor_ranks")
        if {t: len(parts) for t, parts in tailor_ranks.items()} != {t: len(parts) for t, parts in ranks.items()}:
            raise ValueError(f"{where}: tailor_ranks does not have the targets and parts of ranks")
    elif tailor_ranks < 1:
        raise ValueError(f"{where}: tailor_ranks must be at least 1, found {tailor_ranks}")
    digest = take_digest(value, "sha256", where)
    return ClassEntry(file, digest, tailor_ranks, take(value, "row", int, where))


def read_ranks(value: Mapping[str, Any], where: str) -> Ranks:
    """Target -> ranks of its parts, checked."""
    for target, parts in value.items():
        whole = isinstance(parts, list) and all(type(rank) is int and rank >= 1 for rank in parts)
        if not whole or not parts:
            raise ValueError(f"{where}: {target} must list a rank of at least 1 for each part, found {short(parts)}")
    return {target: tuple(parts) for target, parts in value.items()}


def take_digest(value: Mapping[str, Any], key: str, where: str) -> str:
    """`take` for a SHA-256."""
    digest: str = take(value, key, str, where)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"{where}: {key} must be 64 hex digits, found {short(digest)}")
    return digest


def take(value: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value of `key`, which must be there and of that kind (a bool is no int)."""
    if key not in value:
        raise ValueError(f"{where}: {key} is missing")
    found = value[key]
    if isinstance(found, bool) or not isinstance(found, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_WORDS[one] for one in kinds)
        raise ValueError(f"{where}: {key} must be {wanted}, found {short(found)}")
    return found


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_WORDS: dict[type, str] = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}
