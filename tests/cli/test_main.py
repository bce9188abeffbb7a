"""Every verb, from the outside: what works, what is refused, and how."""

import json
import sys

import pytest

from kindgene.cli.main import main

VERBS = ("demo", "pretrain", "decompose", "recombine", "transfer", "sample", "evaluate", "inspect")


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["kindgene", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_and_at_most_25_options(monkeypatch, capsys, verb):
    assert call(monkeypatch, verb, "--help") == 0
    text = capsys.readouterr().out
    assert "Example: kindgene" in text
    assert text.count(" --") <= 2 * 25


def test_from_training_to_samples(monkeypatch, capsys, tmp_path):
    run, pool = tmp_path / "run", tmp_path / "pool"
    small = ("--preset", "tiny/2", "--steps", 3, "--batch-size", 8)
    assert call(monkeypatch, "pretrain", "--classes", "0,1,2", "--out", run, *small) == 0
    assert call(monkeypatch, "decompose", run, "--out", pool) == 0
    assert call(monkeypatch, "recombine", pool, "--classes", "1", "--form", "merged", "--out", tmp_path / "one") == 0
    assert call(monkeypatch, "recombine", pool, "--classes", "1,2", "--out", tmp_path / "two") == 0
    new = ("--classes", "6,7", "--out", tmp_path / "new", "--add", "--steps", 2, "--batch-size", 8)
    assert call(monkeypatch, "transfer", pool, *new) == 0
    for source in (pool, tmp_path / "one", tmp_path / "two", run):
        out = tmp_path / "grid.png"
        assert call(monkeypatch, "sample", source, "--steps", 2, "--per-class", 2, "--out", out) == 0
        assert out.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert call(monkeypatch, "evaluate", pool, "--classes", "0", "--per-class", 2, "--steps", 2) == 0
    assert {"recognised", "macs", "classifier_accuracy"} <= json.loads(capsys.readouterr().out).keys()
    assert call(monkeypatch, "inspect", pool, "--plot", tmp_path / "s.png") == 0
    assert list(json.loads(capsys.readouterr().out)["classes"]) == ["0", "1", "2", "6", "7"]
    for bad in (
        ("recombine", pool, "--classes", "9", "--out", tmp_path / "x"),
        ("recombine", pool, "--classes", "1", "--max-params", "lots", "--out", tmp_path / "x"),
        ("recombine", pool, "--classes", "1", "--max-params", "10", "--out", tmp_path / "x"),
        ("recombine", pool, "--classes", "1", "--out", pool),
        ("pretrain", "--out", run, *small),
        ("pretrain", "--out", tmp_path / "x", "--classes", "0,nobody"),
        ("sample", tmp_path / "one", "--guidance", "2", "--out", tmp_path / "x.png"),
        ("inspect", tmp_path / "nowhere"),
    ):
        assert call(monkeypatch, *bad) == 2, bad
        error = capsys.readouterr().err
        assert error.startswith("kindgene: "), bad
        assert error.count("\n") == 1, bad
    assert not (tmp_path / "x").exists()


def test_the_demo_at_tiny_scale_twice(monkeypatch, tmp_path):
    for _ in range(2):
        assert call(monkeypatch, "demo", "--scale", "tiny", "--out", tmp_path / "demo") == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert {"0,1,2", "4", "4@half"} <= report["recombined"].keys()
    assert report["recombined"]["4@half"]["parameters"] <= report["recombined"]["4"]["parameters"] // 2
    assert "http" not in (tmp_path / "demo" / "report.html").read_text().split("<main>")[1].replace("https", "http")
