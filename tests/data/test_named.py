"""Data sets by name: each name gives its set, whole or in part; an unknown one is answered with the nearest."""

from pathlib import Path

import pytest
import torch

from kindgene.data.digits import load_digits
from kindgene.data.glyphs import load_glyphs
from kindgene.data.named import NAMES, load_named
from kindgene.data.shifts import load_shift


def test_digits() -> None:
    assert torch.equal(load_named("digits").images, load_digits().images)
    some = load_named("digits", 8, ["7", "1"])
    assert some.class_names == ("7", "1")
    assert len(some) == 179 + 182


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("shift:")])
def test_shift_sets(name: str) -> None:
    whole = load_shift(name.removeprefix("shift:"), "validation", 32)
    assert torch.equal(load_named(name, 32, split="validation").images, whole.images)
    wanted = list(whole.class_names[2:0:-1])
    part = load_named(name, 32, wanted, "validation")
    assert part.class_names == tuple(wanted)
    assert torch.equal(part.images, whole.subset(wanted).images)


def test_glyphs(tmp_path: Path) -> None:
    asked = load_named("glyphs", 32, ["d", "comma"], "test", cache=tmp_path)
    assert torch.equal(asked.images, load_glyphs("test", ["d", "comma"], 32, cache=tmp_path).images)
    assert load_named("glyphs:novel", None, ["A"], cache=tmp_path).images.shape == (200, 1, 16, 16)
    assert len(load_named("glyphs", split="validation", cache=tmp_path).class_names) == 150
    assert len(load_named("glyphs:novel", split="validation", cache=tmp_path).class_names) == 461


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "no data set 'digit'; nearest: 'digits'"),
        ("Glyphs", {}, "nearest: 'glyphs'"),
        ("shift:star", {}, "nearest: 'shift:stars'"),
        ("glyphs:base", {}, "nearest: 'glyphs'"),
        ("??", {}, "nearest: 'digits', 'glyphs', 'glyphs:novel', 'shift:digits'"),
        ("digits", {"size": 16}, "digits have 8 pixels a side, not 16; 'shift:digits'"),
        ("digits", {"split": "test"}, "digits come undivided"),
        ("digits", {"classes": ["10"]}, "no class '10' in digits; nearest: '1"),
        ("digits", {"classes": "7"}, r"single string '7'; give a list of names, as in \['7'\]"),
        ("glyphs", {"size": 28}, "16 or 32 pixels a side, not 28"),
        ("glyphs", {"classes": ["A"]}, "glyph class 'A' is not a base class; the data set 'glyphs:novel' has it"),
        ("glyphs:novel", {"classes": ["d"]}, "'d' is not a novel class; the data set 'glyphs' has it"),
        ("glyphs", {"classes": ["Comma"]}, "no glyph class 'Comma'; nearest: 'comma'"),
        ("shift:stars", {"classes": ["spirals"]}, "no class 'spirals' in shift:stars; nearest: 'spiral'"),
    ],
)
def test_unfit_requests_are_refused(tmp_path: Path, name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_named(name, **options, cache=tmp_path)
    assert "\n" not in str(caught.value)
