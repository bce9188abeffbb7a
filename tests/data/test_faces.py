"""The twelve faces, and how a glyph becomes an image."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from kindgene.data import faces
from kindgene.data.superclasses import superclasses


def test_the_twelve_faces_share_2383_code_points() -> None:
    assert len(set(faces.FACES)) == 12
    assert len(set(faces.face_digests().values())) == 12
    assert len(faces.shared_code_points()) == 2383


def test_what_shows_nothing_by_itself_is_left_out() -> None:
    drawn = faces.drawn_code_points()
    assert list(drawn) == sorted(drawn)
    assert len(drawn) == 2296
    assert set("A0.-|█Ж♣") <= set(map(chr, drawn))
    left_out = set(faces.shared_code_points()) - set(drawn)
    assert {ord(" "), 0x00A0, 0x00AD, 0x0301, 0xFFFC} <= left_out  # the last is blank, though it should not be


@pytest.mark.parametrize("character", [".", "A", "│", "ᴬ", "⅞", "W"])
def test_a_mask_is_tight_and_large(character: str) -> None:
    for face in ("DejaVuSans", "DejaVuSerif-BoldItalic"):
        mask = faces.glyph_mask(face, ord(character))
        assert mask.getbbox() == (1, 1, mask.width - 1, mask.height - 1)
        assert max(mask.size) >= 48
        assert mask.getextrema() == (0, 255)


def test_every_member_of_every_class_can_be_drawn() -> None:
    """In one face of each family: the blank and the missing raise."""
    members = [member for superclass in superclasses() for member in superclass.members]
    for member, face in zip(members, faces.FACES * len(members), strict=False):
        assert faces.glyph_mask(face, member).size > (2, 2)


def test_a_blank_glyph_is_refused() -> None:
    with pytest.raises(ValueError, match=r"U\+0020 is blank in DejaVuSans;"):
        faces.glyph_mask("DejaVuSans", ord(" "))


def bar(width: int, height: int) -> Image.Image:
    """A full mask with its dark edge."""
    mask = Image.new("L", (width + 2, height + 2))
    mask.paste(255, (1, 1, width + 1, height + 1))
    return mask


def lit(image: Image.Image) -> tuple[float, float, float, float]:
    """Where it is more than half bright, as shares of the image: left, top, right, bottom."""
    box = image.point(lambda value: 255 * (value > 127)).getbbox()
    assert box is not None
    left, top, right, bottom = (edge / image.width for edge in box)
    return left, top, right, bottom


@pytest.mark.parametrize("size", [16, 24, 32, 64, 100])
def test_the_longer_side_takes_the_extent(size: int) -> None:
    left, top, right, bottom = lit(faces.place(bar(30, 60), size, 0.75))
    assert bottom - top == pytest.approx(0.75, abs=1.5 / size)
    assert right - left == pytest.approx(0.375, abs=1.5 / size)
    assert (left + right) / 2 == pytest.approx(0.5, abs=0.5 / size)
    assert (top + bottom) / 2 == pytest.approx(0.5, abs=0.5 / size)


def test_a_turn_goes_counter_clockwise() -> None:
    """Of an upright bar turned by 20 degrees the top goes left."""
    image = np.asarray(faces.place(bar(6, 60), 64, 0.8, degrees=20.0), dtype=float)
    rows, columns = np.nonzero(image > 127)
    slope = np.polyfit(rows, columns, 1)[0]
    assert slope == pytest.approx(np.tan(np.radians(20.0)), abs=0.03)


def test_a_glyph_moves_as_far_as_there_is_room() -> None:
    free = lit(faces.place(bar(20, 60), 64, 0.9, slack=(1.0, -1.0), furthest=1.0))
    assert free[2] == pytest.approx(1.0, abs=0.03)  # against the right edge,
    assert free[1] == pytest.approx(0.0, abs=0.03)  # and the top one
    held = lit(faces.place(bar(20, 60), 64, 0.9, slack=(1.0, -1.0), furthest=0.1))
    assert (held[0] + held[2]) / 2 == pytest.approx(0.6, abs=0.02)
    assert held[1] == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("slack", [(-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("degrees", [-10.0, 10.0])
def test_a_glyph_stays_whole(slack: tuple[float, float], degrees: float) -> None:
    """The ink of the largest glyph is the same wherever it goes."""
    for mask in (bar(60, 60), bar(10, 60), faces.glyph_mask("DejaVuSans-Bold", ord("W"))):
        still = np.asarray(faces.place(mask, 64, 0.85), dtype=float).sum()
        moved = np.asarray(faces.place(mask, 64, 0.85, degrees, slack, 0.1), dtype=float).sum()
        assert moved == pytest.approx(still, rel=0.01)


def test_a_missing_face_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"DejaVuSans\.ttf: there is no such file"):
        faces.face_file("DejaVuSans")
