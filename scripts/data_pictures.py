"""Makes the pictures of docs/data.md and the sheet docs/superclasses.md: python scripts/data_pictures.py [docs]."""

import html
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from kindgene.data.arrays import ArrayDataset
from kindgene.data.faces import FACES, face_file, glyph_mask, place
from kindgene.data.glyphs import load_glyphs
from kindgene.data.shifts import SHIFTS, load_shift
from kindgene.data.superclasses import BASE_COUNT, COUNT, Superclass, superclasses

PAPER, INK, SOFT, BASE = (255, 255, 255), (30, 30, 30), (120, 120, 120), (0, 80, 170)
COLOURS = 32  # of a saved picture

SAMPLE = "AaQgR&8%ßλΩЖдԱფ∑→♣"  # one of each script, for the table of faces
SHOWN = (
    "a",
    "S",
    "y",
    "9",
    "cyrillic capital letter zhe",
    "georgian letter don",
    "greek small letter omega",
    "comma",
    "square lozenge",
    "horizontal ellipsis",
    "A",
    "O",
    "8",
    "cyrillic capital letter de",
    "armenian small letter xeh",
    "equals sign",
    "rightwards arrow",
    "commercial at",
    "infinity",
    "white sun with rays",
)

PAGES = 4
CELL, LINE, NAME_WIDTH, PER_LINE = 21, 24, 325, 18


def font(size: int, face: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    """A face for labels, in a size in pixels."""
    return ImageFont.truetype(str(face_file(face)), size, layout_engine=ImageFont.Layout.BASIC)


def save(picture: Image.Image, file: Path) -> None:
    """As a small PNG: few colours, best compression."""
    picture.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, optimize=True)


def tile(image: torch.Tensor, side: int) -> Image.Image:
    """An image [1, H, W] in [-1, 1], its pixels enlarged without smoothing to `side`."""
    pixels = ((image[0] + 1.0) * 127.5).round().byte().numpy()
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def clipped(text: str, limit: int) -> str:
    """A label of at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def glyph_picture(cache: str) -> Image.Image:
    """The twelve faces, then random renderings of some classes with 32 and with 16 pixels a side."""
    side, gap, label, many = 40, 2, 250, 8
    width = label + 2 * many * (side + gap) + 32
    faces_high = len(FACES) * (side + gap)
    picture = Image.new("RGB", (width, 100 + faces_high + len(SHOWN) * (side + gap)), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((8, 8), f"{len(FACES)} faces", INK, font(17))
    top = 36
    for row, face in enumerate(FACES):
        y = top + row * (side + gap)
        pen.text((8, y + 11), face, INK, font(14))
        for column, character in enumerate(SAMPLE[: 2 * many]):
            # Enlarged from 32 pixels, as the data set has them.
            small = np.asarray(place(glyph_mask(face, ord(character)), 32, 0.8))
            x = label + column * (side + gap)
            picture.paste(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), (x, y))
    top += faces_high + 34
    pen.text((8, top - 26), "random renderings", INK, font(17))
    pen.text((label, top - 22), "32x32", SOFT, font(13))
    pen.text((label + many * (side + gap) + 24, top - 22), "16x16", SOFT, font(13))
    sets = [load_glyphs("train", SHOWN, size, per_class=many, cache=cache) for size in (32, 16)]
    groups = {superclass.name: superclass.group for superclass in superclasses()}
    for row, name in enumerate(SHOWN):
        y = top + row * (side + gap)
        pen.text((8, y + 5), clipped(name, 32), BASE if groups[name] == "base" else INK, font(13))
        pen.text((8, y + 22), groups[name], SOFT, font(11))
        for half, images in enumerate(sets):
            for column in range(many):
                x = label + half * (many * (side + gap) + 24) + column * (side + gap)
                picture.paste(tile(images.images[row * many + column], side), (x, y))
    return picture


def shift_picture(cache: str) -> Image.Image:
    """Every class of every shift set, a row each, with 32 and with 16 pixels; two rows of glyphs above to compare."""
    side, gap, label, many, small = 48, 2, 150, 10, 5
    glyphs = [load_glyphs("train", ["a", "A"], size, per_class=many, cache=cache) for size in (32, 16)]
    parts = [("glyphs", *glyphs), *((name, *(load_shift(name, size=size) for size in (32, 16))) for name in SHIFTS)]
    rows = sum(len(large.class_names) for _, large, _ in parts)
    width = label + (many + small) * (side + gap) + 32
    picture = Image.new("RGB", (width, rows * (side + gap) + len(parts) * 34 + 8), PAPER)
    pen = ImageDraw.Draw(picture)
    y = 6
    for title, large, little in parts:
        pen.text((8, y + 4), title, INK, font(17))
        pen.text((label, y + 8), "32x32", SOFT, font(13))
        pen.text((label + many * (side + gap) + 24, y + 8), "16x16", SOFT, font(13))
        y += 30
        for name in large.class_names:
            pen.text((8, y + 15), name, INK, font(14))
            for start, shown, images in ((label, many, large), (label + many * (side + gap) + 24, small, little)):
                for column, image in enumerate(images_of(images, name)[:shown]):
                    picture.paste(tile(image, side), (start + column * (side + gap), y))
            y += side + gap
        y += 4
    return picture


def images_of(dataset: ArrayDataset, name: str) -> torch.Tensor:
    """The images of one class."""
    return dataset.images[dataset.labels == dataset.class_names.index(name)]


def sheet_pages() -> list[Image.Image]:
    """The superclasses and their members in DejaVu Sans, as the similarity sees them: two columns a page."""
    rows = [(row, -(-len(row.members) // PER_LINE)) for row in superclasses()]
    per_column = -(-sum(lines for _, lines in rows) // (2 * PAGES)) + 1
    columns: list[list[tuple[Superclass, int]]] = [[]]
    for row, lines in rows:
        if sum(taken for _, taken in columns[-1]) + lines > per_column:
            columns.append([])
        columns[-1].append((row, lines))
    pages = []
    for first in range(0, len(columns), 2):
        width = NAME_WIDTH + PER_LINE * CELL + 24
        page = Image.new("RGB", (2 * width, per_column * LINE + 12), PAPER)
        for index, column in enumerate(columns[first : first + 2]):
            draw_column(page, column, index * width + 8)
        pages.append(page)
    return pages


def draw_column(page: Image.Image, column: list[tuple[Superclass, int]], left: int) -> None:
    """Name and members, a superclass below the other; base classes in blue."""
    pen = ImageDraw.Draw(page)
    y = 6
    for row, lines in column:
        pen.text((left, y + 3), clipped(row.name, 46), BASE if row.group == "base" else INK, font(13))
        for index, member in enumerate(row.members):
            glyph = place(glyph_mask("DejaVuSans", member), CELL - 1, 0.88)
            x = left + NAME_WIDTH + index % PER_LINE * CELL
            page.paste(Image.eval(glyph, lambda value: 255 - value), (x, y + index // PER_LINE * LINE))
        y += lines * LINE
        pen.line((left, y - 2, left + NAME_WIDTH + PER_LINE * CELL, y - 2), (225, 225, 225))


def sheet_text(pages: int) -> str:
    """docs/superclasses.md."""
    parts = [
        "# The 611 superclasses",
        "",
        "Made by `python scripts/data_pictures.py` from `src/kindgene/data/superclasses.json`; how the list came about",
        f"is told in [data.md](data.md). {BASE_COUNT} are for pre-training (blue in the pictures), "
        f"{COUNT - BASE_COUNT} are novel. The",
        "pictures show the members in DejaVu Sans, brought to one size as the similarity sees them; the tables below",
        "name them all, in your browser's own fonts.",
        "",
        *(f"![superclasses, sheet {page}](images/superclasses-{page}.png)\n" for page in range(1, pages + 1)),
    ]
    for group, title in (("base", "Base: for pre-training"), ("novel", "Novel: for transfer")):
        parts += [f"## {title}", "", "| superclass | members |", "|---|---|"]
        for row in superclasses():
            if row.group == group:
                parts.append(f"| {row.name} | {' '.join(map(escaped, row.members))} |")
        parts.append("")
    return "\n".join(parts)


def escaped(code_point: int) -> str:
    """A character that neither Markdown nor HTML takes for its own."""
    character = chr(code_point)
    plain = not character.isascii() or character.isalnum()
    return html.escape(character) if plain else f"&#{code_point};"


def main() -> None:
    """All pictures and the sheet."""
    docs = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "docs")
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        save(glyph_picture(cache), images / "glyphs.png")
        save(shift_picture(cache), images / "shifts.png")
    pages = sheet_pages()
    for number, page in enumerate(pages, 1):
        save(page, images / f"superclasses-{number}.png")
    (docs / "superclasses.md").write_text(sheet_text(len(pages)), encoding="utf-8")


if __name__ == "__main__":
    main()
