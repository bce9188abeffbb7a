"""What a training step costs: of every method of a study the time, taken in turns, and the memory.

Seconds of trainings that ran at different times of a busy machine do not compare; steps that take turns do. A step is
forward and backward of a batch of random images, and the update of AdamW with the moving average (`training/probe.py`,
`training/estimate.py`). Memory is what was counted: weights, gradients, moments, averages, and what autograd keeps.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack

from torch import nn

from kindgene.training.config import TrainConfig
from kindgene.training.estimate import estimate
from kindgene.training.probe import Probe, as_in_training, time_of_an_update


def training_costs(
    models: Mapping[str, nn.Module], shape: tuple[int, int, int], config: TrainConfig, rounds: int
) -> dict[str, dict[str, float]]:
    """Of each model, trained on images of `shape` [C, H, W]: ``step_seconds``, a median of `rounds`, and ``memory``.

    Memory is in bytes. The models take turns, every other round backwards; they stay as they are.
    """
    assert rounds >= 1, "a median needs a figure"
    memory = {name: estimate(model, shape, config, seconds=0)["memory"]["total"] for name, model in models.items()}
    taken = {name: list[float]() for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(as_in_training(model, config))
        probes = {name: Probe(model, shape, config) for name, model in models.items()}
        for number in range(rounds):
            for name in list(models)[:: -1 if number % 2 else 1]:
                seconds = probes[name].run(config.batch_size) + time_of_an_update(models[name], config, 1)
                taken[name].append(seconds)
    return {name: {"step_seconds": statistics.median(taken[name]), "memory": memory[name]} for name in models}
