"""What could not be used of a data set: named, counted, said once; or refused altogether.

A long run must not stop, weeks of work in, at the one damaged file of a million; nor may files vanish in
silence. So what is unfit is left out before training begins, and whoever reads the log knows which and why.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
