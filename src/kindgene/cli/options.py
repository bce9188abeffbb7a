"""What the verbs' options mean: definitions that several verbs share, and texts turned into values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from kindgene.pool.names import check_class_names

_ESCAPE = r"Comma separated; a backslash keeps a comma within a name (a\, b)."


def at_least_one(value: int | None) -> int | None:
    """An option's callback: counts begin at one."""
    if value is not None and value < 1:
        raise typer.BadParameter(f"must be at least 1, got {value}")
    return value


def seed(value: int | None) -> int | None:
    """An option's callback: what a seed can be."""
    if value is not None and not 0 <= value < 2**64:
        raise typer.BadParameter(f"must be at least 0 and below 2**64, got {value}")
    return value


Model = Annotated[Path, typer.Argument(help="A pool (a folder or a Hub id), a merged model, or a run.")]
ReadPool = Annotated[Path, typer.Argument(help="Folder of a pool, or a Hub id: user/name.")]
PoolFolder = Annotated[Path, typer.Argument(help="Folder of a pool.")]
DATA_HELP = (
    "digits, glyphs, glyphs:novel, shift:digits, shift:phantoms, shift:stars, shift:textures, or: a folder with one "
    "folder of images a class, or of latents; an .npz file; a Hugging Face data set."
)
Data = Annotated[str, typer.Option(help=DATA_HELP)]
Classes = Annotated[str | None, typer.Option(help=f"{_ESCAPE} All if not given.")]
PlannedClasses = Annotated[str | None, typer.Option(help=_ESCAPE)]
ChosenClasses = Annotated[str, typer.Option(help=_ESCAPE)]
Seed = Annotated[int, typer.Option(help="Seed of all that is random.", callback=seed)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print settings, parameters and multiply-adds, and stop.")]
DryRunTimed = Annotated[
    bool, typer.Option("--dry-run", help="Print settings, size, memory and time of the run here, and stop.")
]

ImageColumn = Annotated[str | None, typer.Option(help="Of a Hugging Face data set; image if not given.")]
LabelColumn = Annotated[str | None, typer.Option(help='Likewise; label if not given, "" for none.')]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at images that cannot be used, not skip them.")]
Vae = Annotated[str | None, typer.Option(help="Folder or Hub id of the AutoencoderKL that latents are made with.")]

PerClass = Annotated[int, typer.Option(help="Samples of each class.", callback=at_least_one)]
Guidance = Annotated[float, typer.Option(help="1: none. Pools and gated models: 1.5, say. Merged models: 1 alone.")]
Negative = Annotated[
    str | None, typer.Option(help="Class that guidance leads away from, in place of the null class.", metavar="CLASS")
]
SamplingSteps = Annotated[int, typer.Option(help="Sampling steps.", callback=at_least_one)]
Scheduler = Annotated[str, typer.Option(help="ddim, ddpm or dpm++.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU where there is one.")]
Clip = Annotated[bool, typer.Option("--clip/--no-clip", help="Keep predicted images within -1 and 1.")]

_TRAINING = "Training"
_RUN = "Run"
Steps = Annotated[int, typer.Option(help="Optimizer steps.", callback=at_least_one, rich_help_panel=_TRAINING)]
BatchSize = Annotated[int, typer.Option(help="Samples a step.", callback=at_least_one, rich_help_panel=_TRAINING)]
LearningRate = Annotated[
    float, typer.Option(help="Highest; linear warm-up, then a half cosine to 0.", rich_help_panel=_TRAINING)
]
LabelDrop = Annotated[float, typer.Option(help="Share of samples without a label.", rich_help_panel=_TRAINING)]
EmaDecay = Annotated[float, typer.Option(help="Of the averaged weights; 0: none.", rich_help_panel=_TRAINING)]
Accumulation = Annotated[
    int, typer.Option(help="Parts a step is cut into.", callback=at_least_one, rich_help_panel=_TRAINING)
]
MixedPrecision = Annotated[str, typer.Option(help="no or bf16.", rich_help_panel=_TRAINING)]
Deterministic = Annotated[
    bool,
    typer.Option("--deterministic", help="Exact resuming on a GPU too, slower.", rich_help_panel=_TRAINING),
]
CheckpointEvery = Annotated[
    int, typer.Option(help="Steps between checkpoints.", callback=at_least_one, rich_help_panel=_RUN)
]
CheckpointsKept = Annotated[
    int, typer.Option(help="Checkpoints that are kept.", callback=at_least_one, rich_help_panel=_RUN)
]
Resume = Annotated[
    str | None,
    typer.Option(help="Go on with the run in --out: latest, or the path of a checkpoint.", rich_help_panel=_RUN),
]


_BUDGET = "Budget"
MaxParams = Annotated[str | None, typer.Option(help="Parameters: 300k, 1.2M or a number.", rich_help_panel=_BUDGET)]
MaxMacs = Annotated[
    str | None, typer.Option(help="Multiply-adds of a forward of one sample: 1.2G.", rich_help_panel=_BUDGET)
]
MaxBytes = Annotated[str | None, typer.Option(help="Bytes of its numbers: 6MB, 512KiB.", rich_help_panel=_BUDGET)]
MaxLatency = Annotated[
    str | None, typer.Option(help="Time of a forward, measured on --device: 20ms.", rich_help_panel=_BUDGET)
]
Calibrate = Annotated[
    str | None,
    typer.Option(help="Images of the classes to weigh components by: a data set or folder.", rich_help_panel=_BUDGET),
]
Form = Annotated[str, typer.Option(help="gated; or merged or dense: one class, no null class, a plain DiT.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16, int8; the pool's if not given.")]


def class_list(text: str | None) -> list[str] | None:
    r"""``0,1,2`` as names; None stays None. A backslash takes the next character as it is: ``a\, b,c``.

    Spaces around a name do not count. Raises ValueError for names that cannot be, and for repeated ones.
    """
    if text is None:
        return None
    names, name, kept = [], "", 0  # kept: how much of name's beginning was escaped to stay
    for escaped, plain in re.findall(r"\\(.)|(.)", text, re.DOTALL):
        if plain == ",":
            names.append(name[:kept] + name[kept:].rstrip())
            name, kept = "", 0
        elif escaped:
            name += escaped
            kept = len(name)
        elif name or not plain.isspace():
            name += plain
    return list(check_class_names([*names, name[:kept] + name[kept:].rstrip()]))


def with_negative(classes: list[str] | None, negative: str | None) -> list[str] | None:
    """The classes that must be there: those asked for, and the one that guidance leads away from."""
    if classes is None or negative is None or negative in classes:
        return classes
    return [*classes, negative]


def without_negative(names: Sequence[str], negative: str | None) -> list[str]:
    """The classes to draw where none were named: all but the one that guidance leads away from."""
    return [name for name in names if name != negative] or list(names)


def words(text: str | None) -> tuple[str, ...] | None:
    """``tensorboard, wandb`` as words; None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def numbers(text: str | None) -> tuple[float, ...]:
    """``0.25,0.5,1``; None are no numbers."""
    try:
        return () if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"numbers are written 0.25,0.5,1, got {text!r}") from error


def size(text: str | None) -> int | None:
    """``300k``, ``1.2M`` or a plain number."""
    thousands = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
    return None if text is None else int(_number(text, thousands, "a limit is written 300k, 1.2M or 300000"))


def byte_size(text: str | None) -> int | None:
    """``6MB``, ``512KiB`` or a plain number of bytes."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    return None if text is None else int(_number(text, units, "a number of bytes is written 6MB, 512KiB or 300000"))


def milliseconds(text: str | None) -> float | None:
    """``20ms``, ``0.1s`` or a plain number of milliseconds."""
    units = {"": 1, "ms": 1, "s": 1000}
    return None if text is None else float(_number(text, units, "a time is written 20ms, 0.1s or 20"))


def _number(text: str, units: Mapping[str, int], written: str) -> Fraction:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)", text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{written}, got {text!r}")
    return Fraction(match[1]) * units[match[2].lower()]


def new_folder(path: Path) -> None:
    """Refuses, before any work, a folder that holds something."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder; choose a new one (nothing was written)")


def new_run(path: Path) -> None:
    """`new_folder` for a run that is not to be resumed."""
    try:
        new_folder(path)
    except ValueError as error:
        raise ValueError(f"{error}; or pass --resume latest to continue the run in it") from error


def new_file(path: Path, suffix: str) -> None:
    """Refuses, before any work, a file that could not be written after it."""
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} must end in {suffix}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder; make it first")
