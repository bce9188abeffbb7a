"""What all verbs have in common: help, examples, one-line refusals, exit codes, and a start without torch."""

import errno
import logging
import shlex
import signal
import subprocess
import sys
import time

import pytest
import typer

import kindgene.cli.main as command_line
from kindgene import __version__
from kindgene.training.stop import Stopped

COMMANDS = typer.main.get_command(command_line.app).commands
VERBS = tuple(COMMANDS)
MODULES = dict(zip(VERBS, command_line._VERBS, strict=True))


def test_the_verbs_are_there_in_the_order_of_use(kindgene):
    first = ("demo", "pretrain", "decompose", "recombine", "transfer", "sample", "evaluate", "inspect")
    assert VERBS[: len(first)] == first
    shown = kindgene("--help").out
    assert all(f" {verb} " in shown for verb in VERBS)


def test_without_a_verb_the_help_is_shown(kindgene):
    assert kindgene().out == kindgene("--help").out


def test_the_version(kindgene):
    assert kindgene("--version").out == f"kindgene {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_whole_and_readable(kindgene, verb):
    lines = kindgene(verb, "--help").out.splitlines()
    example = next(line.strip() for line in lines if "Example:" in line)
    assert example == f"Example: {MODULES[verb].EXAMPLE}"  # in one line, to be copied
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)  # no option's name is cut short


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_says_what_it_is(verb):
    command = COMMANDS[verb]
    options = [parameter for parameter in command.get_params(typer.Context(command)) if parameter.opts != ["--help"]]
    assert all(parameter.help for parameter in options)
    assert len(options) <= 25


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_right(verb):
    name, own, *arguments = shlex.split(MODULES[verb].EXAMPLE)
    assert (name, own) == ("kindgene", verb)
    COMMANDS[verb].make_context(verb, arguments)


def test_seeds_and_dry_runs_are_where_they_belong():
    having = {option: {verb for verb in VERBS if _has(verb, option)} for option in ("--seed", "--dry-run")}
    assert having["--seed"] >= {"demo", "pretrain", "transfer", "sample", "evaluate"}
    assert having["--dry-run"] >= {"demo", "pretrain", "recombine", "transfer", "evaluate"}


def _has(verb, option):
    return any(option in parameter.opts for parameter in COMMANDS[verb].params)


@pytest.mark.parametrize("arguments", [("--help",), ("pretrain", "--help"), ("--version",), ("pretrain", "--nope")])
def test_it_starts_without_torch(arguments):
    """As a process of its own; the time is generous: 0.35 s were measured."""
    code = (
        "import sys\n"
        "from kindgene.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'diffusers', 'numpy', 'matplotlib', 'sklearn', 'PIL', 'accelerate'}\n"
        "    sys.exit(str(heavy & sys.modules.keys() or 'light'))\n"
    )
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == "light"
    assert time.perf_counter() - began < 2.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nonsense",), "No such command 'nonsense'; see kindgene --help"),
        (("--nonsense",), "No such option: --nonsense"),
        (("pretrain",), "Missing option '--out'; see kindgene pretrain --help"),
        (("pretrain", "--out", "x", "--stepps", "3"), "No such option: --stepps"),
        (("pretrain", "--out", "x", "--steps", "abc"), "'--steps'"),
        (("pretrain", "--out", "x", "--steps"), "'--steps' requires an argument"),
        (("pretrain", "--out", "x", "--steps", "0"), "'--steps': must be at least 1, got 0"),
        (("pretrain", "--out", "x", "--batch-size", "-8"), "must be at least 1, got -8"),
        (("pretrain", "--out", "x", "--seed", "-1"), "must be at least 0 and below 2**64, got -1"),
        (("pretrain", "--out", "x", "--seed", str(2**64)), "must be at least 0 and below 2**64"),
        (("pretrain", "--out", "x", "more"), "more"),
        (("decompose", "--out", "x"), "Missing argument"),
        (("recombine", "pool", "--out", "x"), "--classes, or give a --plan: one of the two"),
        (("transfer", "pool", "--out", "x", "--tailor-rank", "0"), "'--tailor-rank': must be at least 1, got 0"),
        (("sample", "pool", "--out", "x.png", "--per-class", "0"), "'--per-class': must be at least 1, got 0"),
        (("sample", "pool", "--out", "x.png", "--steps", "0"), "'--steps': must be at least 1, got 0"),
        (("evaluate", "pool", "--per-class", "0"), "'--per-class': must be at least 1, got 0"),
        (("evaluate", "pool", "--guidance", "much"), "'--guidance'"),
    ],
)
def test_a_wrong_command_line_is_one_line(refused, monkeypatch, tmp_path, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "kindgene: two lines\n"),
        (ValueError(), "kindgene: ValueError\n"),
        (FloatingPointError("nan"), "kindgene: nan\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "kindgene: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "kindgene: /x: Permission denied\n"),
        (OSError("in its own words"), "kindgene: in its own words\n"),
    ],
)
def test_expected_errors_are_one_line(refused, monkeypatch, error, line):
    _fail(monkeypatch, error)
    assert refused("inspect", "pool") == line


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TypeError("a bug"), KeyError("a bug"), AssertionError()])
def test_bugs_are_not_hidden(kindgene, monkeypatch, error):
    _fail(monkeypatch, error)
    with pytest.raises(type(error)):
        kindgene("inspect", "pool")


def test_an_interruption_outside_training(kindgene, monkeypatch):
    _fail(monkeypatch, KeyboardInterrupt())
    assert kindgene("inspect", "pool", code=130).err == "kindgene: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_was_asked_to_stop(kindgene, monkeypatch, number):
    _fail(monkeypatch, Stopped(f"{number.name} after step 2 of 20; and more", number), "pretrain")
    told = kindgene("pretrain", "--out", "x", code={signal.SIGINT: 130, signal.SIGTERM: 143}[number]).err
    assert told.startswith(f"kindgene: interrupted: {number.name} after step 2 of 20; add --resume latest to")


def test_a_reader_who_has_seen_enough(kindgene, monkeypatch):
    _fail(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert kindgene("inspect", "pool", code=1).err == ""


def _fail(monkeypatch, error, verb="inspect"):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(f"kindgene.cli.{verb}.run", fail)


def test_warnings_of_the_library_are_told_once(kindgene, monkeypatch):
    def warn(path, **options):
        logging.getLogger("kindgene.somewhere").warning("mind %s", path)

    monkeypatch.setattr("kindgene.cli.inspect.run", warn)
    for _ in range(2):
        assert kindgene("inspect", "pool").err == "kindgene: mind pool\n"


def test_signal_handlers_are_left_alone(kindgene):
    before = signal.getsignal(signal.SIGINT)
    kindgene("--version")
    assert signal.getsignal(signal.SIGINT) is before
