"""`kindgene`: the verbs, and what becomes of errors. Heavy libraries are imported inside the verbs."""

from __future__ import annotations

import sys

import typer

from kindgene.cli import decompose, demo, evaluate, inspect, pretrain, recombine, sample, transfer

app = typer.Typer(
    name="kindgene",
    help="Pre-train a transformer once, take it apart, put it together again for every deployment (KIND).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _verb in (demo, pretrain, decompose, recombine, transfer, sample, evaluate, inspect):
    app.command(_verb.__name__.rpartition(".")[2])(_verb.run)


def main() -> None:
    """Runs a command. Bad input: one line and exit code 2. Ctrl-C: exit code 130."""
    try:
        app()
    except KeyboardInterrupt:
        _say("interrupted; the last checkpoint is whole: run the same command with --resume")
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        _say(" ".join(str(error).split()))
        sys.exit(2)


def _say(message: str) -> None:
    sys.stderr.write(f"kindgene: {message}\n")
