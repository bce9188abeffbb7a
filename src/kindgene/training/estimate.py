"""What a run will need, before it is started: memory part by part and time, measured on this machine in seconds.

Shapes: N rows of a table, P numbers a row.

What can be counted is counted (weights, gradients, moments, averages, gathered rows: the bytes that `ModelAdamW` and
`EMA` hold, a test says). What depends on the model's inside is measured on random images (`probe.py`); the model is
left as it was, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from kindgene.core.decomposable import Decomposable
from kindgene.training.config import TrainConfig
from kindgene.training.optimizer import row_tables, shared_parameters
from kindgene.training.probe import Probe, activations, as_in_training, time_of_a_batch, time_of_an_update

SECONDS = 3.0
"""About so long forwards and backwards are timed; a large model takes the few that it needs at the least (ours)."""

_FLOAT32, _COUNT, _SUM = 4, 4, 8  # bytes: of an average, of the optimizer's step counts, of the average's running sums


def estimate(
    model: nn.Module,
    shape: tuple[int, int, int],
    config: TrainConfig,
    processes: int = 1,
    *,
    macs: int | None = None,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """What `train(model, dataset, config)` needs for images of `shape` [C, H, W], as plain data.

    - ``parameters``: ``all`` and ``trained``. ``macs``: multiply-adds of one forward of one sample, as the caller
      counted them.
    - ``memory``: bytes of one process, at most, by part: ``weights`` (buffers too), ``gradients`` of what is shared,
      ``moments``, ``ema``, ``gathered_rows`` (values and gradients), ``activations`` of a micro-batch (what autograd
      keeps for backward) and the ``total``. With ``parallel="tailor"`` a process holds its share of the tailors, with
      ``shard_learngene`` of what is shared. Gradients and activations together were 1.0 to 1.3 times what lived at
      once where that was measured; the allocator's overhead and buffers of communication come on top.
    - ``time``: seconds a step (the micro-batches and the update) and of the whole run, images a second, and what was
      ``measured``. Every process is taken to have a device like this one's; reading data, communication, compilation
      and checkpoints are not in it.

    The model is where it will be trained, with all its tailors. Raises ValueError as its own forward does, and where
    it has no checkpointing that was asked for.
    """
    assert processes >= 1, "a run has at least one process"
    micro = math.ceil(config.batch_size / (config.gradient_accumulation_steps * processes))
    with as_in_training(model, config):
        probe = Probe(model, shape, config)
        kept = activations(probe, micro, config.gradient_checkpointing)
        batch_seconds, measured = time_of_a_batch(probe, micro, kept / micro, seconds)
    memory = {**_counted(model, config, processes), "activations": kept}
    update_seconds = time_of_an_update(model, config, processes)
    step = config.gradient_accumulation_steps * batch_seconds + update_seconds
    return {
        "parameters": {
            "all": sum(parameter.numel() for parameter in model.parameters()),
            "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        },
        "macs": macs,
        "processes": processes,
        "micro_batch": micro,
        "memory": {**memory, "total": sum(memory.values())},
        "time": {
            "step_seconds": step,
            "total_seconds": step * config.steps,
            "images_per_second": config.batch_size / step,
            "micro_batch_seconds": batch_seconds,
            "update_seconds": update_seconds,
            "device": str(probe.device),
            "measured": {str(batch): taken for batch, taken in measured.items()},
        },
    }


def _counted(model: nn.Module, config: TrainConfig, processes: int) -> dict[str, int]:
    """Bytes of one process whose number is known; of what is divided, the largest share of any."""
    shared, tables = shared_parameters(model), row_tables(model)
    of_rows = processes if config.parallel == "tailor" else 1
    of_shared = processes if config.shard_learngene else 1
    bank = [table.rows for table in model.bank.tables.values()] if isinstance(model, Decomposable) else []

    gradients = math.ceil(_bytes(shared.values()) / of_shared)
    weights = math.ceil((_bytes(model.parameters()) - _bytes(bank)) / of_shared) + _bytes(model.buffers())
    weights += sum(math.ceil(len(rows) / of_rows) * _row_bytes(rows) for rows in bank)
    moments = 2 * gradients + _COUNT * len(shared)
    averages = math.ceil(sum(map(_average_bytes, shared.values())) / of_shared) + 2 * _SUM
    gathered = 0
    for rows in (table.rows for table in tables.values()):
        held = math.ceil(len(rows) / of_rows)
        moments += held * (2 * _row_bytes(rows) + _COUNT)
        averages += held * (_average_bytes(rows) // len(rows) + _SUM)
        gathered += 2 * min(config.batch_size, held) * _row_bytes(rows)
    return {
        "weights": weights,
        "gradients": gradients,
        "moments": moments,
        "ema": averages if config.ema_decay > 0 else 0,
        "gathered_rows": gathered,
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _row_bytes(rows: Tensor) -> int:
    return rows.shape[1] * rows.element_size()


def _average_bytes(value: Tensor) -> int:
    """An average is float32, or has the weights' own finer dtype."""
    return value.numel() * max(_FLOAT32, value.element_size())
