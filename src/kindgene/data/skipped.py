"""What could not be used of a data set: named, counted, said once; or refused altogether.

A long run must not stop, weeks of work in, at the one damaged file of a million; nor may files vanish in
silence. So what is unfit is left out before training begins, and whoever reads the log knows how much, of which kind,
and the first few by name; `write_skipped` puts all of them into a file, which `read_skipped` reads.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kindgene import files

SKIPPED_FILE = "skipped.jsonl"
"""The name that `write_skipped` files go by in a folder of latents."""

_logger = logging.getLogger(__name__)
_NAMED = 3


@dataclass(frozen=True)
class Skipped:
    """A file, or a row of a table, that was left out.

    path: where it is; kind: a few words to count by ("animated"); reason: the rest of the sentence that begins
    with the path; advice: what would make it fit.
    """

    path: str
    kind: str
    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON: path, kind, reason, advice."""
        return asdict(self)


class DamagedImageError(ValueError):
    """An image that passed all checks and cannot be decoded after all. skipped: what would be said if it were left out.

    A worker process's error is made anew from its message alone, so `skipped` may be missing.
    """

    def __init__(self, message: str, skipped: Skipped | None = None) -> None:
        super().__init__(message)
        self.skipped = skipped


def refuse(skipped: Sequence[Skipped]) -> None:
    """Raises ValueError for the first, if any: what strictness means."""
    if skipped:
        raise ValueError(f"{skipped[0]}; {skipped[0].advice}")


def warn(skipped: Sequence[Skipped], origin: str, total: int) -> None:
    """Says in one line, if any, what was left out of the `total` entries of `origin`."""
    if not skipped:
        return
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(each.kind for each in skipped).most_common())
    named = "; ".join(str(each) for each in skipped[:_NAMED])
    rest = len(skipped) - _NAMED
    _logger.warning(
        "skipped %s of %s entries of %s (%s): %s%s",
        f"{len(skipped):,}",
        f"{total:,}",
        origin,
        kinds,
        named,
        f"; and {rest:,} more" if rest > 0 else "",
    )


def write_skipped(path: files.StrPath, skipped: Sequence[Skipped]) -> None:
    """Writes all that was left out, a line of JSON each (`Skipped.to_dict`), in the order given, whole or not at all.

    Of nothing there is no file, not even one that was there before.
    """
    if skipped:
        lines = (json.dumps(each.to_dict(), ensure_ascii=False) + "\n" for each in skipped)
        files.write_bytes(path, "".join(lines).encode("utf-8", "backslashreplace"))
    else:
        Path(path).unlink(missing_ok=True)


def read_skipped(path: files.StrPath) -> tuple[Skipped, ...]:
    """What `write_skipped` wrote; nothing where there is no file. Raises ValueError, naming it, for a damaged one."""
    path = Path(path)
    if not path.is_file():
        return ()
    try:
        return tuple(Skipped(**json.loads(line)) for line in path.read_bytes().splitlines())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged; it is a note for readers alone, and can be removed") from error
