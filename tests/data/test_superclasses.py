"""The list of superclasses: whole, readable, and made again by its script."""

import html
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kindgene import files
from kindgene.data import superclasses as module
from kindgene.data.faces import drawn_code_points, face_digests, freetype_version
from kindgene.data.similarity import similarities
from kindgene.data.superclasses import Superclass, as_text, build, merge, name_of, names, parse, superclasses
from kindgene.pool.names import check_class_names


def test_611_are_150_base_and_461_novel() -> None:
    assert len(superclasses()) == 611
    assert Counter(superclass.group for superclass in superclasses()) == {"base": 150, "novel": 461}
    assert len(names("base")) == 150
    assert not set(names("base")) & set(names("novel"))


def test_every_code_point_is_in_exactly_one() -> None:
    members = [member for superclass in superclasses() for member in superclass.members]
    assert len(members) == len(set(members))
    assert sorted(members) == list(drawn_code_points())


def test_names_are_readable_unique_and_fit_a_pool() -> None:
    every = [superclass.name for superclass in superclasses()]
    assert check_class_names(every) == tuple(every)
    assert all(name.isascii() and name.isprintable() and "," not in name and name == name.strip() for name in every)
    assert all(superclass.name == name_of(superclass.members) for superclass in superclasses())
    assert {"A", "a", "0", "comma", "cyrillic capital letter zhe", "rightwards arrow"} <= set(every)


def test_base_classes_have_two_members_or_more() -> None:
    assert min(len(superclass.members) for superclass in superclasses() if superclass.group == "base") >= 2
    assert any(len(superclass.members) >= 2 for superclass in superclasses() if superclass.group == "novel")


@pytest.mark.parametrize(
    ("together", "apart"),
    [
        ("AΑАÀÁÂᴬ", "a"),  # Latin, Greek, Cyrillic, with accents, small capital
        ("OΟОÒÔᴼ", "o"),
        ("oοо0ᵒ₀", "e"),
        ("CcСсϲĆ", "G"),
        ("XxΧХхˣ", "K"),
        ("zZŽžΖ", "2"),
        ("3Ззɜ", "8"),
        (".■▪·", "°"),
        ("—–―─", "="),
        ("HΗН", "N"),
    ],
)
def test_look_alikes_are_together(together: str, apart: str) -> None:
    home = {member: superclass.name for superclass in superclasses() for member in superclass.members}
    assert len({home[ord(character)] for character in together}) == 1
    assert home[ord(apart[0])] != home[ord(together[0])]


def test_a_list_is_made_the_same_again() -> None:
    """From the renderings, for a part of the code points, in any order."""
    points = [ord(character) for character in "AΑАBΒВ8HΗНmᵐ→■.●Ж"]
    rows = build(points, similarities(points), count=8, base_count=3)
    assert {"".join(map(chr, row.members)) for row in rows} >= {"AΑА", "HΗН", "mᵐ", "→", "Ж"}
    other = points[::-1]
    again = build(other, similarities(other), count=8, base_count=3)
    assert as_text(again, {}, "") == as_text(rows, {}, "")
    assert sum(row.group == "base" for row in rows) == 3


def test_the_text_reads_back(tmp_path: Path) -> None:
    rows = (Superclass("A", "base", (0x41, 0x391)), Superclass("comma", "novel", (0x2C,)))
    (tmp_path / "list.json").write_text(as_text(rows, {"Face": "00"}, "2.13"))
    document = files.read_json(tmp_path / "list.json")
    assert parse(document) == rows
    assert document["faces"] == {"Face": "00"}
    with pytest.raises(ValueError, match="has version 3; this code reads 2"):
        parse({**document, "version": 3})


def test_merging_takes_the_most_alike_first() -> None:
    similar = np.array([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.2, 0.1], [0.1, 0.2, 1, 0.6], [0.2, 0.1, 0.6, 1]])
    points = [7, 3, 5, 9]
    assert sorted(merge(points, similar, 3)) == [[3, 7], [5], [9]]
    assert sorted(merge(points, similar, 2)) == [[3, 7], [5, 9]]
    assert merge(points, similar, 4) == [[7], [3], [5], [9]]
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"4 glyphs cannot be merged into {count}"):
            merge(points, similar, count)
    with pytest.raises(ValueError, match="3 base classes are asked for, but only 2 are fit to be one"):
        build([0x41, 0x42, 0x43, 0x44], similar, count=2, base_count=3)


def test_base_classes_are_not_too_much_alike() -> None:
    """Of three pairs, two of which are 0.82 alike, two can be base classes: the third and one of those."""
    points = [ord(character) for character in "abcdef"]
    similar = np.full((6, 6), 0.3)
    similar[:4, :4] = 0.82
    for pair in (0, 2, 4):
        similar[pair : pair + 2, pair : pair + 2] = 0.95
    rows = build(points, similar, count=3, base_count=2)
    base = {row.name for row in rows if row.group == "base"}
    assert base in ({"a", "e"}, {"c", "e"})
    with pytest.raises(ValueError, match="only 2 are fit"):
        build(points, similar, count=3, base_count=3)
    similar[similar == 0.82] = 0.80
    assert {row.group for row in build(points, similar, count=3, base_count=3)} == {"base"}


def test_names_prefer_what_can_be_typed() -> None:
    assert name_of([0x24, 0x53, 0x73]) == "S"
    assert name_of([0x391, 0x410]) == "greek capital letter alpha"
    assert name_of([0x2C]) == "comma"


def test_the_sheet_in_the_docs_shows_this_list() -> None:
    """One row a superclass, in two columns; made again by scripts/data_pictures.py after a change."""
    text = (Path(__file__).parents[2] / "docs" / "superclasses.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    shown = [(name, [html.unescape(member) for member in members.split()]) for name, members in rows]
    assert shown.count(("superclass", ["members"])) == 2  # the heads of the two tables
    shown = sorted(row for row in shown if row[0] != "superclass")
    assert shown == sorted((superclass.name, list(map(chr, superclass.members))) for superclass in superclasses())


@pytest.mark.slow
def test_the_whole_list_is_made_again() -> None:
    """Byte for byte; with another FreeType, whose outlines are rounded otherwise, nearly the same."""
    points = drawn_code_points()
    rows = build(points, similarities(points))
    if files.read_json(module.LIST_FILE)["freetype"] == freetype_version():
        text = as_text(rows, face_digests(), freetype_version())
        assert text == module.LIST_FILE.read_text(encoding="utf-8")
    pairs = [{pair for row in list_ for pair in combinations(row.members)} for list_ in (rows, superclasses())]
    assert len(pairs[0] & pairs[1]) > 0.8 * len(pairs[0] | pairs[1])


def combinations(members: tuple[int, ...]) -> set[tuple[int, int]]:
    return {(one, other) for one in members for other in members if one < other}
