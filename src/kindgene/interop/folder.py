"""The folder of an export: there as a whole or not at all, with a record of what it holds and how exact it is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from kindgene._version import __version__
from kindgene.files import StrPath, sync_folder, umask, write_json
from kindgene.interop.source import Chosen

RECORD = "export.json"


@dataclass(frozen=True)
class Export:
    """What was written, as export.json says it.

    `classes`: label id of each class, `null` that of the null class (None: there is none). `relative_error`: of the
    export, run in its own software, against the model it was made from. `approximate`: why it is not exact, where the
    caller wanted it all the same; `notes`: what this export cannot do.
    """

    to: str
    classes: Mapping[str, int]
    null: int | None
    dtype: str
    parameters: int
    relative_error: float
    learngene_id: str | None = None
    approximate: Sequence[str] = ()
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        to: str,
        chosen: Chosen,
        exported: nn.Module,
        error: float,
        approximate: Sequence[str] = (),
        notes: Sequence[str] = (),
        **details: Any,
    ) -> Export:
        """The record of a chosen model that was exported as the module `exported`."""
        parameters = sum(value.numel() for value in exported.parameters())
        dtype = str(chosen.dtype).removeprefix("torch.")
        ids, null, learngene_id = chosen.classes, chosen.null, chosen.learngene_id
        return cls(to, ids, null, dtype, parameters, error, learngene_id, tuple(approximate), tuple(notes), details)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "kindgene-export",
            "kindgene": __version__,
            "to": self.to,
            "learngene_id": self.learngene_id,
            "classes": dict(self.classes),
            "null": self.null,
            "dtype": self.dtype,
            "parameters": self.parameters,
            "relative_error": self.relative_error,
            "approximate": list(self.approximate),
            "notes": list(self.notes),
            **self.details,
        }


@contextmanager
def whole_folder(out: StrPath) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` if the block ends well and vanishes if not.

    Raises ValueError, before any work, for a path where something is already (an empty folder apart).
    """
    out = Path(out)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ValueError(f"{out} exists and is not an empty folder; choose a new one (nothing was written)")
    made = [parent for parent in [out.parent, *out.parent.parents] if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=out.parent))
    try:
        folder.chmod(0o777 & ~umask())
        yield folder
        if out.exists():
            out.rmdir()
        folder.replace(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            parent.rmdir()
        raise
    sync_folder(out.parent)


def write_record(folder: Path, export: Export) -> Export:
    """Writes export.json; returns the export."""
    write_json(folder / RECORD, export.to_json())
    return export
