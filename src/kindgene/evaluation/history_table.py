"""The history of a run as a table of a few moments: the first, some in between, the last."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kindgene.evaluation.history import History, Moment, Number, spaced

ROWS = 8
"""So many moments are shown."""

_COLUMNS: dict[str, Callable[[Moment], Number]] = {
    "loss": lambda moment: moment.loss,
    "gradient": lambda moment: moment.grad_norm,
    "grad.:\nL": lambda moment: moment.learngene_gradient,
    "T": lambda moment: moment.tailor_gradient,
    "s max": lambda moment: moment.singular_largest,
    "s median": lambda moment: moment.singular_median,
    "s min": lambda moment: moment.singular_smallest,
    "energy\nof T": lambda moment: moment.tailor_energy,
    "orth.:\nU": lambda moment: moment.orthogonality_u,
    "V": lambda moment: moment.orthogonality_v,
}
_NOTE = (
    "L: learngene, T: tailors (mean), of the raw weights; s: singular values of L, means over the matrices; orth.: "
    "||N - I|| / sqrt(N_G) of L's directions, 0: orthogonal (drift, below, is this over sqrt(N_G - 1))"
)


def history_table(history: History) -> RenderableType:
    """Moments with diagnostics where there are any, else of the loss alone; columns that tell nothing are left out."""
    diagnosed = [moment for moment in history.moments if moment.diagnosed]
    shown = spaced(diagnosed or history.moments, ROWS)
    columns = {head: value for head, value in _COLUMNS.items() if any(value(moment) is not None for moment in shown)}
    if diagnosed:
        columns.pop("gradient", None)  # it is told of the two halves
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("step", *columns):
        table.add_column(head if "\n" in head or not diagnosed else f"\n{head}", justify="right", overflow="fold")
    for moment in shown:
        table.add_row(f"{moment.step:,}", *(_cell(head, value(moment)) for head, value in columns.items()))
    notes = [Text(_NOTE)] if diagnosed else []
    return Group(Text("History", style="bold"), table, *notes, Text())


def _cell(head: str, value: Number) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}%" if "energy" in head else f"{value:.3g}"
