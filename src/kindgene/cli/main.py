"""`kindgene`: the verbs, and what becomes of errors. Heavy libraries are imported inside the verbs."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, cast

import typer
from safetensors import SafetensorError

from kindgene._version import __version__
from kindgene.cli import (
    add,
    bench,
    decompose,
    demo,
    encode,
    evaluate,
    export,
    import_,
    inspect,
    merge,
    plan,
    pretrain,
    push,
    recombine,
    reference,
    remove,
    sample,
    study,
    transfer,
    verify,
)
from kindgene.pool.noise import without_torchao_noise
from kindgene.training.stop import Stopped

BAD_INPUT, SIGNALLED = 2, 128
_VERBS = (
    *(demo, pretrain, decompose, recombine, transfer, sample, evaluate, inspect),
    *(encode, reference, plan, add, remove, merge, verify, push, export, import_, study, bench),
)
_GO_ON = MappingProxyType(
    {
        "demo": "run the same command again to go on from there",
        "encode": "run the same command again to go on from there",
        "study": "run the same command again to go on from there",
        "pretrain": "add --resume latest to the same command to go on from there",
        "add": "add --resume latest to the same command to go on from there",
        "transfer": "add --resume latest to the same command to go on from there",
    }
)
# What a user's input, files or disk can cause. safetensors reports a full disk by its own exception.
_EXPECTED = (ValueError, OSError, FloatingPointError, SafetensorError)
# What is wrong with a command line: click's UsageError, which typer shows only as the base of this one.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="kindgene",
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Example: kindgene demo",
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Pre-train a transformer once, take it apart, put it together again for every deployment (KIND)."""
    if version:
        typer.echo(f"kindgene {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Runs a command and exits: 0; 2 for bad input, after one line on standard error; else by the signal.

    130 after Ctrl-C, 143 after SIGTERM: 128 and the signal's number, as shells have it.
    """
    try:
        with _warnings_shown(), without_torchao_noise():
            sys.exit(app(prog_name="kindgene", standalone_mode=False))
    except _USAGE_ERROR as error:
        wrong = cast(Any, error)  # its type is only known when it runs
        command = "kindgene" if wrong.ctx is None else wrong.ctx.command_path
        _say(f"{wrong.format_message().rstrip('.')}; see {command} --help")
        sys.exit(BAD_INPUT)


def _name(verb: ModuleType) -> str:
    return verb.__name__.rpartition(".")[2].rstrip("_")  # import is a word of Python


def _guarded(verb: ModuleType) -> Callable[..., None]:
    """The verb's function, with its errors turned into a line and an exit code."""

    @functools.wraps(verb.run)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            verb.run(*args, **kwargs)
        except KeyboardInterrupt as error:
            _say(_interruption(_name(verb), str(error)))
            number = error.number if isinstance(error, Stopped) else signal.SIGINT
            raise typer.Exit(SIGNALLED + number) from error
        except BrokenPipeError:  # whoever read our output has seen enough: typer ends quietly
            raise
        except _EXPECTED as error:
            _say(_reason(error))
            raise typer.Exit(BAD_INPUT) from error

    return run


for _verb in _VERBS:
    app.command(_name(_verb), epilog=f"Example: {_verb.EXAMPLE}")(_guarded(_verb))


def _interruption(verb: str, told: str) -> str:
    """`told` is what training says when it was stopped between two steps; "" elsewhere."""
    if not told or verb not in _GO_ON:
        return "interrupted"
    return f"interrupted: {told.partition(';')[0]}; {_GO_ON[verb]}"


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


def _say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"kindgene: {' '.join(message.split())}\n")


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """What the library warns of (a damaged checkpoint passed over, say) goes to standard error, in our form.

    Of several processes the first one warns: all see the same.
    """
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger("kindgene").addHandler(logging.NullHandler())
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("kindgene: %(message)s"))
    logger = logging.getLogger("kindgene")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
