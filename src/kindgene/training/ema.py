"""The exponential moving average of the weights, whose cost follows the classes present in a step.

Shapes: N rows of a table (of those that this process holds), P numbers a row, R rows gathered for a step.

Every step t means ``ema = p + d_t (ema - p)`` for all weights, with d_t = min(decay, (1 + t) / (10 + t)). A
row whose class is absent keeps its p, so n such steps make ``ema = p + (d_1 ... d_n) (ema - p)``: they are
caught up when the row is met again. The products of a warmed-up decay come from a running sum of log d in
float64: the factor is exp(L_now - L_last) (ours).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kindgene.core.bank import GatheredRows
from kindgene.training.optimizer import gathered_tables, row_tables, shared_parameters


@dataclass
class _Rows:
    """The average [N, P] of a table; L [N] (float64, CPU) as it was when each row was last caught up."""

    average: Tensor
    last: Tensor


class EMA:
    """Averages of all that a model trains, in float32 or the weights' finer dtype. `decay` in [0, 1).

    What is not trained has no average: it is its own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.steps, self.log_decay = 0, 0.0
        self.shared = {name: _fine(parameter) for name, parameter in shared_parameters(model).items()}
        self.rows = {
            name: _Rows(_fine(table.rows), torch.zeros(len(table.rows), dtype=torch.float64))
            for name, table in row_tables(model).items()
        }

    @torch.no_grad()
    def update(self, rows: GatheredRows | None = None) -> None:
        """Takes in the weights after an optimizer step; `rows` as gathered for it hold the values before."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        before, self.log_decay = self.log_decay, self.log_decay + math.log(decay)
        parameters = shared_parameters(self.model)
        for name, average in self.shared.items():
            average.lerp_(parameters[name].to(average.dtype), 1.0 - decay)
        tables = row_tables(self.model)
        for name, gathered in gathered_tables(self.model, rows).items():
            mine, present = self.rows[name], gathered.positions
            average = mine.average.index_select(0, present)
            old = gathered.values.detach()[: gathered.count]
            average = _catch_up(average, old, before - mine.last[present.cpu()])
            average = torch.lerp(average, tables[name].rows.index_select(0, present).to(average.dtype), 1.0 - decay)
            mine.average.index_copy_(0, present, average)
            mine.last.index_fill_(0, present.cpu(), self.log_decay)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Every average, all rows caught up, by state-dict name: copies. The lazy state is left as it is."""
        averages = {name: average.clone() for name, average in self.shared.items()}
        for name, table in row_tables(self.model).items():
            mine = self.rows[name]
            averages[name] = _catch_up(mine.average, table.rows, self.log_decay - mine.last)
        return averages

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Puts the averages where the weights were; buffers and what is not trained stay."""
        parameters = dict(self.model.named_parameters())
        for name, average in self.weights().items():
            parameters[name].copy_(average)

    def state(self) -> dict[str, Tensor]:
        """The lazy state as it is, as named tensors."""
        state = {f"average.{name}": average for name, average in self.shared.items()}
        for name, mine in self.rows.items():
            state |= {f"average.{name}": mine.average, f"last.{name}": mine.last}
        state["log_decay"] = torch.tensor(self.log_decay, dtype=torch.float64)
        state["steps"] = torch.tensor(self.steps)
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Takes the state back. Raises ValueError, naming `source` and the key, for what does not fit."""
        mine = self.state()
        wrong = sorted(mine.keys() ^ state.keys())
        if wrong:
            raise ValueError(f"{source}: {wrong[0]} is {'missing' if wrong[0] in mine else 'unexpected'}")
        for name, value in mine.items():
            if value.shape != state[name].shape:
                raise ValueError(f"{source}: {name} has shape {list(state[name].shape)}, expected {list(value.shape)}")
            value.copy_(state[name])
        self.log_decay, self.steps = float(state["log_decay"]), int(state["steps"])


@torch.no_grad()
def averaged_weights(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same averages out of a saved `EMA.state` and the weights saved with it, without a model."""
    averages = {}
    for key, average in state.items():
        if key.startswith("average."):
            name = key.removeprefix("average.")
            last = state.get(f"last.{name}")
            averages[name] = average if last is None else _catch_up(average, weights[name], state["log_decay"] - last)
    return averages


def _fine(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)


def _catch_up(average: Tensor, weights: Tensor, log_gap: Tensor) -> Tensor:
    """Averages [R, P] after steps that left the weights alone; exp(gap) [R]: the product of their decays."""
    share = (-torch.expm1(log_gap)).to(average.device, average.dtype).unsqueeze(1)
    return torch.lerp(average, weights.to(average.dtype), share)
