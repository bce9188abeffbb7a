"""Actions timed side by side: they take turns, so that a ratio holds whatever else the machine does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def clock() -> Callable[[], float]:
    """Seconds of this process's own work with one thread, so that other processes' turns do not count; else of time."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def take_turns(
    actions: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 1, now: Callable[[], float] | None = None
) -> dict[str, float]:
    """Median seconds of each action, all of them once a round, every other round backwards; `warm` rounds before.

    `now` is the clock, by default `clock()`.
    """
    now, times = now or clock(), {name: list[float]() for name in actions}
    for turn in range(warm + repeats):
        for name in list(actions)[:: 1 if turn % 2 == 0 else -1]:
            began = now()
            actions[name]()
            if turn >= warm:
                times[name].append(now() - began)
    return {name: statistics.median(values) for name, values in times.items()}
