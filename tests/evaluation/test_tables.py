"""An inspection as text: it fits a terminal, says what was measured, and takes class names as they are."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from kindgene import DiT, KindConfig, make_decomposable
from kindgene.evaluation.inspect_path import inspect_path
from kindgene.evaluation.tables import CLASSES, as_text

NAMES = ("[bold]cat[/bold]", "tench, Tinca tinca", "c")


def pool_of(names, folder, **settings):
    plain = DiT.from_preset("tiny/2", num_classes=len(names), class_names=names)
    options = {"learngene_rank": 4, "tailor_rank": 2, "targets": "paper+adaln", **settings}
    model = make_decomposable(plain, KindConfig(num_classes=len(names), **options), torch.Generator().manual_seed(0))
    return inspect_path(model.decompose().save_pretrained(folder))


def text_of(found, *arguments, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(as_text(found, *arguments))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


def row(lines, heading, name):
    """The cells of the first row called `name` of the table that begins with `heading`."""
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == [heading])
    return next(line.split() for line in lines[start + 1 :] if line.strip().startswith(f"{name} "))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return pool_of(NAMES, tmp_path_factory.mktemp("tables") / "pool")


def test_the_numbers_are_those_measured(found):
    lines = text_of(found)
    (structure,) = found.structures
    fc1 = [layer for layer in structure.layers if layer.kind == "fc1"]

    def average(value):
        return sum(map(value, fc1)) / len(fc1)

    spectra, overlap = row(lines, "spectra", "fc1"), row(lines, "overlap", "fc1")
    assert spectra[1:7] == ["2", "128", "x", "32", "4", f"{average(lambda x: x.shared.effective_rank):.1f}"]
    assert spectra[7:] == ["2", f"{average(lambda x: sum(one.effective_rank for one in x.tailors) / 3):.1f}"]
    assert overlap[1] == f"{average(lambda x: x.pairs.overlap_u):.3f}"
    assert overlap[2] == f"{average(lambda x: x.pairs.overlap_u) / average(lambda x: x.pairs.random_u):.1f}x"
    share = average(lambda x: sum(tailor.energy_share for tailor in x.tailors) / 3)
    assert overlap[-1] == f"{100 * share:.1f}%"
    assert any(line.startswith("drift from orthogonality") and "canonical" in line for line in lines)
    assert any(f"{found.parameters:,} parameters" in line for line in lines)


def test_class_names_are_taken_as_they_are(found):
    lines = text_of(found)
    assert any(line.strip().startswith("[bold]cat[/bold] ") for line in lines)
    assert any("the closest two in U" in line for line in lines)


def test_a_line_a_matrix(found):
    kinds, layers = text_of(found), text_of(found, True)
    assert row(layers, "spectra", "1 k")[:2] == ["1", "k"]
    assert len(layers) - len(kinds) == 2 * (14 - 7)  # two blocks, in two tables


def test_a_training_has_its_drift_beside_random_directions(found):
    (structure,) = found.structures
    far = [replace(layer, shared=replace(layer.shared, drift_u=0.25)) for layer in structure.layers]
    record = {"step": 7, "steps": 9, "seconds": 1.0, "loss_first": 0.5, "loss_last": 0.25}
    run = replace(
        found, kind="run", canonical=False, record=record, structures=[replace(structure, weights="raw", layers=far)]
    )
    lines = text_of(run)
    assert row(lines, "drift", "fc1") == ["fc1", "0.250", "0.000", "0.000", "0.000", "0.088", "0.177"]
    assert "DiT, step 7 of 9, 1 s" in lines
    assert "loss 0.5000 (first 50 steps) -> 0.2500 (last 50)" in lines


def test_where_dense_is_cheaper(tmp_path):
    lines = text_of(pool_of(("a", "b"), tmp_path / "pool", learngene_rank=14))
    assert row(lines, "spectra", "q")[5] == "14*"  # (14 + 2) (32 + 32) = 32 * 32
    assert row(lines, "spectra", "fc1")[5] == "14"
    assert "* would cost no more multiply-adds as a dense matrix" in lines


def test_long_lists_are_cut(tmp_path):
    names = tuple(f"n{index}" for index in range(CLASSES + 5))
    lines = text_of(pool_of(names, tmp_path / "pool", targets=["blocks.0.attn.proj"]))
    assert "and 5 more classes (--json lists all)" in lines
    assert f"32 of {CLASSES + 5} tailors are measured below (--classes chooses others)" in lines
    assert not any(line.strip().startswith(f"n{CLASSES} ") for line in lines)


def test_a_pool_that_is_here_in_part(found):
    gone = {name: replace(facts, bytes=None) for name, facts in list(found.classes.items())[:2]}
    lines = text_of(replace(found, classes=found.classes | gone))
    assert "2 of 3 classes have no file here; the bytes above are those here" in lines
    assert not any("no file here" in line for line in text_of(found))


def test_one_class(tmp_path):
    lines = text_of(pool_of(("alone",), tmp_path / "pool"))
    assert not any("closest two" in line for line in lines)
    assert row(lines, "overlap", "fc1")[-1].endswith("%")
