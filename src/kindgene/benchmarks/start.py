"""What it takes to start: a process that imports the package, and one that prints the command's help."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python alone": ("-c", "pass"),
    "import kindgene": ("-c", "import kindgene"),
    "kindgene --help": ("-m", "kindgene", "--help"),
}


def measure_start(repeats: int) -> dict[str, dict[str, float]]:
    """Of a process of each command, from its start to its end, the median seconds that pass (`wall`) and are worked
    (`cpu`). They take turns, after a round that fills the page cache.
    """
    wall, cpu = ({name: list[float]() for name in COMMANDS} for _ in range(2))
    for turn in range(1 + repeats):
        for name in list(COMMANDS)[:: 1 if turn % 2 == 0 else -1]:
            began, worked = time.perf_counter(), _worked()
            command = [sys.executable, *COMMANDS[name]]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            if turn:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(_worked() - worked)
    return {name: {"wall": statistics.median(wall[name]), "cpu": statistics.median(cpu[name])} for name in COMMANDS}


def _worked() -> float:
    """Seconds that processes started by this one, and ended, have worked."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
