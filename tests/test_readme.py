"""What is shown works: README's Python runs as written, and every command line that is shown can be typed."""

import re
import shlex
from pathlib import Path

import pytest
import typer

import kindgene
from kindgene.cli.main import app

README = Path(__file__).parent.parent / "README.md"
DOCS = sorted((README.parent / "docs").rglob("*.md"))
TEMPLATE = Path(kindgene.__file__).parent / "studies" / "templates" / "demo.html.j2"
COMMANDS = typer.main.get_command(app).commands


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shown(path):
    """Command lines of kindgene: lines of a block that begin with it, and what is written as `code` in a sentence."""
    text = path.read_text(encoding="utf-8")
    found = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines()]
    found = [re.sub(r"^(<pre>|\$ )+", "", line) for line in found]
    found = [line.removesuffix("</pre>") for line in found if line.startswith("kindgene ")]
    return found + re.findall(r"`(kindgene [a-z][^`]*)`", text)


def test_the_python_block_runs_as_written(tmp_path, monkeypatch):
    """With fewer steps, and nothing else changed."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(README.read_text(encoding="utf-8"), "python")
    assert len(code.strip().splitlines()) < 15
    assert code.count("steps=600") == 1
    names = {}
    exec(compile(code.replace("steps=600", "steps=4"), str(README), "exec"), names)
    assert tuple(names["images"].shape) == (16, 1, 8, 8)
    assert sum(value.numel() for value in names["small"].parameters()) <= 160_000
    assert kindgene.Pool.from_pretrained(tmp_path / "my-pool").classes == ("0", "1", "2")


@pytest.mark.parametrize("path", [README, TEMPLATE, *DOCS], ids=lambda path: path.name)
def test_every_command_line_can_be_typed(path):
    lines = shown(path)
    assert lines or path in DOCS
    for line in lines:
        if "|" in line:  # a list of the verbs
            verbs = [part.strip() for part in line.removeprefix("kindgene ").split("|")]
            assert set(verbs) <= set(COMMANDS)
            continue
        _, verb, *arguments = shlex.split(line, comments=True)
        assert verb in COMMANDS, line
        if arguments:
            COMMANDS[verb].make_context(verb, arguments)  # raises for what it does not know


def test_wrong_command_lines_would_be_found():
    """The test above is not blind."""
    for line in ("pretrain --epochs 3 --out x", "sample pool --out", "recombine pool --classes a", "sample --out x"):
        verb, *arguments = shlex.split(line)
        with pytest.raises(typer.BadParameter.__mro__[1]):
            COMMANDS[verb].make_context(verb, arguments)


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([a-z]+):", README.with_name("Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_link_of_the_docs_leads_somewhere():
    for page in (README, *DOCS):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
