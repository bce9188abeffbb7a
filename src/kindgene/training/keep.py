"""What each process writes into a checkpoint: the main one what is shared, each the rows that it alone holds.

Shapes: H rows of a table that a process holds.
"""

from __future__ import annotations

from torch import Tensor, nn

from kindgene.core.decomposable import Decomposable
from kindgene.training.checkpoint import Held
from kindgene.training.placement import EVERYONE, Placement
from kindgene.training.processes import Processes
from kindgene.training.spread import whole

State = dict[str, Tensor]


def held_rows(model: nn.Module) -> dict[str, Tensor]:
    """Ids [H] of the rows that this process holds, by the state-dict name of their table; not of a table held whole."""
    if not isinstance(model, Decomposable):
        return {}
    return {
        f"bank.{name}.rows": table.held.cpu() for name, table in model.bank.tables.items() if table.held is not None
    }


def take_rows(
    model: nn.Module, states: dict[str, State], placement: Placement | None, processes: Processes
) -> tuple[dict[str, State] | None, Held | None]:
    """Takes the held rows out of `states`; those that this process has to write, and their ids.

    Rows that everyone holds are the main process's to write. (None, None) where every process holds all.
    """
    if placement is None:
        return None, None
    owners = {"bank.tailors.rows": placement.owner, "bank.labels.rows": placement.owner[placement.tailor_of]}
    held = held_rows(model)
    mine = {}
    for table, ids in held.items():
        owner = owners[table][ids]
        mine[table] = (owner == processes.rank) | ((owner == EVERYONE) & processes.main)
    rows: dict[str, State] = {name: {} for name in states}
    for name, state in states.items():
        for key in list(state):
            for table in [table for table in mine if key.endswith(table)]:
                value = state.pop(key)
                rows[name][key] = value if mine[table].all() else value.cpu()[mine[table]]
    return rows, {table: ids[mine[table]] for table, ids in held.items()}


def put_together(state: State, sharded: bool, processes: Processes) -> State:
    """The tensors whole, one after the other, for the main process; {} for the others, who help with sharded ones."""
    if not sharded:
        return state if processes.main else {}
    tensors = {}
    for key, value in state.items():
        full = whole(value)
        if processes.main:
            tensors[key] = full.cpu()
    return tensors
