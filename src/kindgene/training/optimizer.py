"""AdamW for a model whose classes live in rows: shared parameters as ever, rows only when their class is
there.

Shapes: N rows of a table (of those that this process holds), P numbers a row, R rows gathered for a step.

A class that is absent from an optimizer step is not touched, bit for bit: neither its row nor its moments,
weight decay or step count (DESIGN section 3, ours). So a row's state is that of an AdamW that ran only in the
steps its class was part of, and a step costs by the classes present. A plain module is the case without
tables.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from kindgene.core.bank import GatheredRows, GatheredTable, RowTable
from kindgene.core.decomposable import Decomposable

_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
_MOMENTS = ("exp_avg", "exp_avg_sq")


def shared_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is to be trained and belongs to no class, by state-dict name; of a plain module, all of it."""
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if isinstance(model, Decomposable):
        return {name: parameter for name, parameter in own.items() if not name.startswith("bank.")}
    return own


def row_tables(model: nn.Module) -> dict[str, RowTable]:
    """The tables whose rows are to be trained, by the state-dict name of their rows."""
    if not isinstance(model, Decomposable):
        return {}
    return {f"bank.{name}.rows": table for name, table in model.bank.tables.items() if table.rows.requires_grad}


def gathered_tables(model: nn.Module, rows: GatheredRows | None) -> dict[str, GatheredTable]:
    """What a step gathered of each of `row_tables`, by the same names."""
    if rows is None:
        return {}
    gathered = {"bank.tailors.rows": rows.tailors, "bank.labels.rows": rows.labels}
    return {name: gathered[name] for name in row_tables(model)}


class RowAdamW:
    """AdamW on the rows of one table: moments [N, P] and step counts [N] that move only with their row."""

    def __init__(self, rows: Tensor, betas: tuple[float, float], weight_decay: float, eps: float) -> None:
        self.rows = rows.detach()  # the same memory
        self.betas, self.weight_decay, self.eps = betas, weight_decay, eps
        self.exp_avg = torch.zeros_like(self.rows)
        self.exp_avg_sq = torch.zeros_like(self.rows)
        self.steps = torch.zeros(self.rows.shape[0], device=self.rows.device)

    @torch.no_grad()
    def step(self, positions: Tensor, gradient: Tensor, lr: float) -> None:
        """Updates the rows at `positions` [R], in place, by their gradients [R, P]."""
        if positions.numel() == 0:
            return
        index = positions.tolist()
        adamw(
            [self.rows[i] for i in index],
            list(gradient.unbind()),
            [self.exp_avg[i] for i in index],
            [self.exp_avg_sq[i] for i in index],
            [],
            [self.steps[i] for i in index],
            fused=self.rows.device.type in _FUSED_DEVICES,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )


class ModelAdamW:
    """AdamW over all that a model trains: `torch.optim.AdamW` on what is shared, `RowAdamW` on each table.

    What does not require a gradient has no state here and is never changed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self.model = model
        self.shared = shared_parameters(model)
        tables = row_tables(model)
        if not self.shared and not tables:
            raise ValueError("nothing in this model is trainable: every parameter has requires_grad=False")
        self.rows = {name: RowAdamW(table.rows, betas, weight_decay, eps) for name, table in tables.items()}
        self.adamw: torch.optim.AdamW | None = None
        if self.shared:
            fused = all(parameter.device.type in _FUSED_DEVICES for parameter in self.shared.values())
            self.adamw = torch.optim.AdamW(
                self.shared.values(), betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
            )

    def leaves(self, rows: GatheredRows | None) -> dict[str, Tensor]:
        """Everything that has a gradient in this step, by name: for clipping and for checks."""
        tables = {name: table.values for name, table in gathered_tables(self.model, rows).items()}
        return {name: leaf for name, leaf in {**self.shared, **tables}.items() if leaf.grad is not None}

    def step(self, lr: float, rows: GatheredRows | None = None) -> None:
        """One update from the gradients at hand, and of the rows that were gathered for this step only."""
        if self.adamw is not None:
            self.adamw.param_groups[0]["lr"] = lr
            self.adamw.step()
        for name, table in gathered_tables(self.model, rows).items():
            if table.values.grad is not None:
                self.rows[name].step(table.positions, table.values.grad[: table.count], lr)

    def zero_grad(self) -> None:
        """Forgets the gradients of what is shared; those of gathered rows go with the rows."""
        if self.adamw is not None:
            self.adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All of the state as named tensors: step.NAME, exp_avg.NAME, exp_avg_sq.NAME."""
        state = {}
        for name, parameter in self.shared.items():
            assert self.adamw is not None
            for key, value in self.adamw.state.get(parameter, {}).items():
                state[f"{key}.{name}"] = value
        for name, table in self.rows.items():
            state |= {f"step.{name}": table.steps}
            state |= {f"exp_avg.{name}": table.exp_avg, f"exp_avg_sq.{name}": table.exp_avg_sq}
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Takes the state back. Raises ValueError, naming `source` and the key, for what does not fit."""
        left = dict(state)
        for name, table in self.rows.items():
            for key, mine in (
                ("step", table.steps),
                ("exp_avg", table.exp_avg),
                ("exp_avg_sq", table.exp_avg_sq),
            ):
                mine.copy_(_take(left, f"{key}.{name}", mine.shape, source))
        for name, parameter in self.shared.items():
            if f"step.{name}" not in left:  # never had a gradient
                continue
            assert self.adamw is not None
            step = _take(left, f"step.{name}", torch.Size(()), source).to(parameter.device)
            moments = {key: _take(left, f"{key}.{name}", parameter.shape, source).to(parameter) for key in _MOMENTS}
            self.adamw.state[parameter] = {"step": step, **moments}
        if left:
            raise ValueError(f"{source}: unexpected {', '.join(sorted(left)[:3])}; it belongs to another model")


def _take(state: dict[str, Tensor], key: str, shape: torch.Size, source: str) -> Tensor:
    if key not in state:
        raise ValueError(f"{source}: {key} is missing")
    value = state.pop(key)
    if value.shape != shape:
        raise ValueError(f"{source}: {key} has shape {list(value.shape)}, expected {list(shape)}")
    return value
