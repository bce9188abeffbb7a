"""How far a long job has come, shown to whom it may concern. Library code reports here and never prints.

`Progress` is what a job talks to; `NoProgress` listens to nothing; `RichProgress` draws a bar with loss,
images a second, memory and time left on a terminal, and writes a plain line now and then where there is none.
"""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBar


class Progress(Protocol):
    """What a job of many steps reports to."""

    def start(self, total: int, done: int = 0) -> None:
        """`total` steps there are, `done` of them already."""

    def update(
        self,
        done: int,
        loss: float | None = None,
        images_per_second: float | None = None,
        memory: float | None = None,
    ) -> None:
        """`done` steps are done; the latest loss, the present speed and bytes of memory, where the job has them."""

    def close(self) -> None:
        """No more will come, whether all went well or not."""


class NoProgress:
    """Listens to nothing."""

    def start(self, total: int, done: int = 0) -> None: ...

    def update(
        self,
        done: int,
        loss: float | None = None,
        images_per_second: float | None = None,
        memory: float | None = None,
    ) -> None: ...

    def close(self) -> None: ...


class RichProgress:
    """A bar on a terminal; elsewhere a plain line every `seconds`, and one for the last step.

    `console` is where it shows (default: standard error, so that output stays clean for pipes).
    """

    def __init__(self, description: str = "training", console: Console | None = None, seconds: float = 10.0) -> None:
        self.description, self.seconds = description, seconds
        self.console = Console(stderr=True) if console is None else console
        self._bar: RichBar | None = None
        self._task = TaskID(0)
        self._total = self._first = 0
        self._started = self._said = 0.0

    def start(self, total: int, done: int = 0) -> None:
        self._total, self._first = total, done
        self._started = self._said = time.monotonic()
        if not self.console.is_terminal:
            return
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.description, total=total, completed=done, figures="")

    def update(
        self,
        done: int,
        loss: float | None = None,
        images_per_second: float | None = None,
        memory: float | None = None,
    ) -> None:
        figures = "" if loss is None else f"loss {loss:.4f}"
        if images_per_second is not None:
            figures += f"  {images_per_second:.0f} images/s"
        if memory is not None:
            figures += f"  {memory / 1e9:.2f} GB"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=figures)
            return
        now = time.monotonic()
        if done < self._total and now - self._said < self.seconds:
            return
        self._said = now
        fresh = done - self._first
        left = (now - self._started) / fresh * (self._total - done) if fresh > 0 else 0.0
        self.console.print(
            f"{self.description}: step {done}/{self._total}  {figures}  {_clock(left)} left",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
