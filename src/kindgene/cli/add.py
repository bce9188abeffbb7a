"""kindgene add: `transfer`, with the same options, that ends in the pool."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from kindgene.cli import options, transfer

EXAMPLE = "kindgene add my-pool --data digits --classes 6,7 --out runs/new"


def run(**choices: Any) -> None:
    """Train tailors for new classes, and add them to the pool.

    The learngene stays as it is, and so do all other classes, bit for bit. After
    an interruption the same command with --resume latest goes on.
    """
    transfer.run(add=True, **choices)


_hints = {**get_type_hints(transfer.run, include_extras=True), "pool": options.PoolFolder}
_parameters = [p for p in inspect.signature(transfer.run).parameters.values() if p.name != "add"]
run.__signature__ = inspect.Signature([p.replace(annotation=_hints[p.name]) for p in _parameters])  # type: ignore[attr-defined]
run.__annotations__ = {p.name: _hints[p.name] for p in _parameters}
