"""The bars that the figures are to reach: by how much they are missed, what their time is made of, what to try next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Any]

_THIN = (
    "one kernel of our own for the two thin products that read the output's gradient; or a lower learngene rank, which "
    "the time follows and quality may allow"
)
_WHOLE_LIMIT = 600.0


@dataclass(frozen=True)
class Bar:
    """One bar. `most` says whether `asked` is the most or the least that is good; `unit` is "" of a ratio.

    `limit`: what the roofline would make of `measured`, where it was counted. `made_of`: what the time is made of, in
    sentences; `next`: what to try where the bar is missed. Bars of one part say the same of both.
    """

    what: str
    asked: float
    measured: float
    most: bool
    made_of: str
    next: str
    unit: str = ""
    limit: float | None = None

    @property
    def reached(self) -> bool:
        return self.measured <= self.asked if self.most else self.measured >= self.asked

    @property
    def cells(self) -> list[str]:
        """What, asked, measured, and whether it is reached, or by how much it is not."""
        whole = self.asked >= 100
        unit = f" {self.unit}" if self.unit else ""
        asked = f"{'<=' if self.most else '>='} {self.asked:.{0 if whole else 2}f}{unit}"
        measured = f"{self.measured:.{0 if whole else 3 if self.most else 2}f}{unit}"
        return [self.what, asked, measured, "yes" if self.reached else f"no, {self.missed_by}"]

    @property
    def missed_by(self) -> str:
        """How far beside the bar, in per cent of it."""
        apart = 100 * abs(self.measured / self.asked - 1)
        return f"{apart:.{0 if apart >= 10 else 1}f}% {'above' if self.most else 'below'}"


def bars(figures: Figures, seconds: float | None = None) -> list[Bar]:
    """The bars whose figures are there, of the first shape; `seconds`: of the benchmark, with nothing left out."""
    found = [bar for part in (_steps, _growth, _mixed, _recombined, _storage, _start, _gpu) for bar in part(figures)]
    if seconds is not None:
        slow = "fewer rounds of the per-class loop, the slowest of the ways a step is compared with"
        found.append(Bar("the whole benchmark", _WHOLE_LIMIT, seconds, True, "", slow, "s"))
    return found


def count(number: int, what: str, plural: str) -> str:
    """``1 class``, ``10,000 classes``."""
    return f"{number:,} {what if number == 1 else plural}"


def _steps(figures: Figures) -> Iterator[Bar]:
    if "steps" not in figures:
        return
    shape, ways = next(iter(figures["steps"].items()))
    made_of = _made_of(figures, "steps", "decomposable", ways["decomposable"]["forward_backward"])
    for what, asked, other, time in (
        ("step, forward and backward, against dense", 0.42, "dense", "forward_backward"),
        ("step with the optimizer, against dense", 0.45, "dense", "whole"),
        ("step, forward and backward, against the full rank masked", 0.30, "masked full rank", "forward_backward"),
    ):
        limit = _limit(figures, "steps", "decomposable", other) if time == "forward_backward" else None
        ratio = ways["decomposable"][time] / ways[other][time]
        yield Bar(f"{shape} {what}", asked, ratio, True, made_of, _THIN, limit=limit)


def _growth(figures: Figures) -> Iterator[Bar]:
    if "growth" not in figures:
        return
    times = list(figures["growth"].items())
    (few, first), (many, last) = times[0], times[-1]
    yield Bar(
        f"a step of {count(int(many), 'class', 'classes')} against one of {int(few):,}",
        *(1.10, last / first, True),
        "The batches have as many different classes, so what is beyond 1 follows the classes that are not there.",
        "a profile of both steps side by side: gathering rows, optimizer and average must leave the others alone",
    )


def _mixed(figures: Figures) -> Iterator[Bar]:
    if "mixed" not in figures:
        return
    ours, theirs = (figures["mixed"][way] for way in ("gated", "peft mixed batch"))
    yield Bar(
        "a mixed batch: peft's time / ours",
        *(5.0, theirs / ours, False),
        _made_of(figures, "mixed", "gated", ours),
        "fewer components, by a plan under a budget; ours must take a fifth of peft's time, which is that of a dense "
        "model and its adapters",
        limit=_limit(figures, "mixed", "peft mixed batch", "gated"),
    )


def _recombined(figures: Figures) -> Iterator[Bar]:
    if "recombined" not in figures:
        return
    found = figures["recombined"]
    for name, asked, next_ in (
        ("dense", 1.02, "a profile of both: they run the same operations"),
        ("factored", 0.50, "a budget, or a lower learngene rank: the time follows the components"),
    ):
        way = f"one class, {name}"
        yield Bar(
            f"one class, merged, {name}, against the dense DiT",
            *(asked, found[way] / found["dense DiT"], True),
            *(_made_of(figures, "recombined", way, found[way]), next_),
            limit=_limit(figures, "recombined", way, "dense DiT"),
        )


def _storage(figures: Figures) -> Iterator[Bar]:
    if "storage" not in figures:
        return
    found, rates = figures["storage"], figures.get("roofline", {}).get("rates")
    flushed = found["plain save, flushed"] / found["plain save"]
    saving = f"Of a plain file's speed {flushed:.2f} is left if it is flushed; a pool is several files, hashed as well."
    opening = "Every byte is hashed, and compared."
    if rates is not None:
        alone = 1e-9 / (1 / rates["sha256"] + 2 / rates["copy"])
        opening += (
            f" On one core SHA-256 makes {rates['sha256'] / 1e9:.1f} GB/s and a copy {rates['copy'] / 2e9:.1f}: one "
            f"after the other {alone:.1f}, which is {alone / found['plain load']:.2f} of the plain file's."
        )
    more_saving = "fewer flushes: one of all files, where the system has such, in place of one a file"
    more_opening = "more cores to hash on; or hashes compared when a tailor is first used, not when a pool is opened"
    for what, ours, plain, made_of, next_ in (
        ("saving against a plain safetensors file", "save", "plain save", saving, more_saving),
        ("saving against a plain file, flushed", "save", "plain save, flushed", saving, more_saving),
        ("opening against a plain safetensors file", "open", "plain load", opening, more_opening),
        ("opening against a plain file, hashed", "open", "plain load, hashed", opening, more_opening),
    ):
        yield Bar(what, 0.5, found[ours] / found[plain], False, made_of, next_)


def _start(figures: Figures) -> Iterator[Bar]:
    if "start" not in figures:
        return
    alone = figures["start"]["python alone"]["wall"]
    for name, asked in (("import kindgene", 0.1), ("kindgene --help", 0.5)):
        found = figures["start"][name]
        made_of = (
            f"The process works for {found['cpu']:.3f} s of it, and waits for the rest; one of Python alone takes "
            f"{alone:.3f} s."
        )
        slow = "python -X importtime, which tells what is imported before it is needed"
        yield Bar(f"{name}, a process from start to end", asked, found["wall"], True, made_of, slow, "s")


def _gpu(figures: Figures) -> Iterator[Bar]:
    if "gpu" not in figures:
        return
    step = {way: times["seconds"] for way, times in figures["gpu"]["step"].items()}
    floor = step["targets free"] / step["dense"]
    yield Bar(
        f"{figures['gpu']['shape']} step on a GPU, bfloat16, against dense (floor {floor:.3f})",
        *(0.60, step["decomposable"] / step["dense"], True),
        f"With the targets free of charge the step would be at {floor:.3f}.",
        "the kernels that the table of layers shows farthest from the dense layer's time",
    )


def _limit(figures: Figures, part: str, way: str, other: str) -> float | None:
    """The ratio of two ways at the roofline."""
    found = figures.get("roofline", {}).get(part)
    return None if found is None else float(found[way]["seconds"] / found[other]["seconds"])


def _made_of(figures: Figures, part: str, way: str, measured: float) -> str:
    """What the measured seconds of a way are made of."""
    found = figures.get("roofline", {}).get(part)
    if found is None:
        return "The part roofline tells what the time is made of."
    work = found[way]
    parts = (work["arithmetic_seconds"], work["seconds"] - work["arithmetic_seconds"], measured - work["seconds"])
    whole, arithmetic, memory, beyond = (f"{1000 * seconds:,.0f}" for seconds in (measured, *parts))
    return (
        f"Of the {whole} ms of ours ({way}) {arithmetic} are arithmetic at the rate of large products, {memory} more "
        f"are memory, and {beyond} are beyond both: products that run slower than large ones, allocation, Python."
    )
