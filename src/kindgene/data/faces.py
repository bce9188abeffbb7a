"""The twelve DejaVu faces that matplotlib ships, and how a glyph of theirs becomes an image.

Sans, Sans Mono and Serif, each upright and slanted, regular and bold. A glyph is drawn large, cut out to its
ink, and brought to an image of any size by one affine map, so that a full stop and an ideograph fill the
image alike: its place and size on the line are no part of what it looks like here. Ink is bright on dark, as
in scikit-learn's digits.

Shapes: H height, W width of an image.
"""

import math
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, features

from kindgene import files

FACES = (
    "DejaVuSans",
    "DejaVuSans-Oblique",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
)

# Spaces and format characters have no ink of their own, combining marks none without a letter to sit on.
_NO_GLYPH_OF_THEIR_OWN = ("Zs", "Cf", "Mn")
_EM_SIZES = (96, 192, 384)  # pixels; a small glyph is drawn at a larger size
_SHORTEST = 48  # pixels of a mask's longer side
_FINEST_GRID = 64  # pixels a side; smaller images are averaged down from a grid at least this fine


def face_file(face: str) -> Path:
    """Where a face's file lies. Raises ValueError where matplotlib came without it."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; matplotlib's own wheel has it, so install that one")
    return file


@cache
def face_digests() -> dict[str, str]:
    """Face -> SHA-256 of its file, for all twelve."""
    return {face: files.sha256(face_file(face)) for face in FACES}


def freetype_version() -> str:
    """The version of FreeType that Pillow draws with; others round outlines differently here and there."""
    return str(features.version("freetype2"))


@cache
def shared_code_points() -> tuple[int, ...]:
    """The code points that all twelve faces have a glyph for, ascending (2,383 in DejaVu 2.37)."""
    return tuple(sorted(set.intersection(*(set(FT2Font(str(face_file(face))).get_charmap()) for face in FACES))))


@cache
def drawn_code_points() -> tuple[int, ...]:
    """Those of the shared code points that show something by themselves, ascending (2,296 in DejaVu 2.37).

    Left out: spaces, format characters and combining marks (by Unicode category), and what is blank in a face.
    """
    candidates = [
        point for point in shared_code_points() if unicodedata.category(chr(point)) not in _NO_GLYPH_OF_THEIR_OWN
    ]
    return tuple(point for point in candidates if all(_ink(face, point, _EM_SIZES[0]) for face in FACES))


def glyph_mask(face: str, code_point: int) -> Image.Image:
    """A glyph's ink, tightly cut out with one dark pixel around: 8-bit grey, its longer side 48 pixels or more.

    Raises ValueError for a glyph that is blank.
    """
    mask = None
    for em in _EM_SIZES:
        mask = _ink(face, code_point, em)
        if mask is None or max(mask.size) >= _SHORTEST:
            break
    if mask is None:
        raise ValueError(f"U+{code_point:04X} is blank in {face}; it cannot be a class's member")
    return mask


def place(
    mask: Image.Image,
    size: int,
    extent: float,
    degrees: float = 0.0,
    slack: tuple[float, float] = (0.0, 0.0),
    furthest: float = 0.0,
) -> Image.Image:
    """A mask, with its dark edge, in a square image: 8-bit grey, `size` pixels a side.

    The ink's longer side becomes the share `extent` of the image's, turned by `degrees` (counter-clockwise).
    `slack` moves it from the centre, each direction from -1 to 1 of the room there is: up to the image's edge,
    but no further than the share `furthest` of the image. So a glyph whose `extent` fits is always whole.
    Drawn on a grid at least 64 pixels fine and averaged down.
    """
    fine = -(-_FINEST_GRID // size)
    grid = size * fine
    width, height = mask.width - 2, mask.height - 2
    turn = math.radians(degrees)
    cosine, sine = math.cos(turn), math.sin(turn)
    scale = max(width, height) / (extent * grid)  # mask pixels for one pixel of the grid
    reach_x = (width * cosine + height * abs(sine)) / scale / grid
    reach_y = (height * cosine + width * abs(sine)) / scale / grid
    x = grid * (0.5 + slack[0] * min(max((1 - reach_x) / 2, 0.0), furthest))
    y = grid * (0.5 + slack[1] * min(max((1 - reach_y) / 2, 0.0), furthest))
    # Where in the mask each pixel of the grid comes from.
    a, b, d, e = scale * cosine, -scale * sine, scale * sine, scale * cosine
    origin = (a, b, mask.width / 2 - a * x - b * y, d, e, mask.height / 2 - d * x - e * y)
    drawn = mask.transform((grid, grid), Image.Transform.AFFINE, origin, Image.Resampling.BILINEAR)
    return drawn.reduce(fine) if fine > 1 else drawn


@lru_cache(maxsize=len(FACES) * len(_EM_SIZES))
def _font(face: str, em: int) -> ImageFont.FreeTypeFont:
    # The basic layout is in every build of Pillow, and never joins or reorders.
    return ImageFont.truetype(str(face_file(face)), em, layout_engine=ImageFont.Layout.BASIC)


def _ink(face: str, code_point: int, em: int) -> Image.Image | None:
    """A glyph at `em` pixels, cut out with one dark pixel around; None if it is blank."""
    font, text = _font(face, em), chr(code_point)
    left, top, right, bottom = font.getbbox(text)
    size = (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2)
    image = Image.new("L", size)
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, fill=255, font=font)
    box = image.getbbox()
    if box is None:
        return None
    return image.crop((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1))
