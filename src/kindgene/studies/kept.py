"""Results that are computed once: a JSON file a cell, beside what it was computed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kindgene.files import read_json, write_json


def kept(file: Path, settings: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in `file` if it is of these settings; else what `compute` gives, which is written there.

    Raises ValueError for a file that is of other settings: results of two studies are not mixed.
    """
    if file.exists():
        found = read_json(file)
        if not isinstance(found, dict) or found.get("settings") != dict(settings):
            raise ValueError(f"{file} was computed with other settings; choose another folder, or remove it")
        result: dict[str, Any] = found["result"]
        return result
    result = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"settings": dict(settings), "result": result})
    return result
