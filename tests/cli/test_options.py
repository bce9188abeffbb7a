"""Texts of the command line turned into values: class lists with commas in names, sizes, places to write to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kindgene.cli.options import class_list, new_file, new_folder, new_run, size, words


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, None),
        ("0", ["0"]),
        ("0,1,2", ["0", "1", "2"]),
        (" 0 , 1 ", ["0", "1"]),
        ("sea lion,cat", ["sea lion", "cat"]),
        (r"tench\, Tinca tinca,cat", ["tench, Tinca tinca", "cat"]),
        (r"a\,b\,c", ["a,b,c"]),
        (r"back\\slash,cat", ["back\\slash", "cat"]),
        (r"\ led, trailed\ ,x", [" led", "trailed ", "x"]),
        ("at the end\\", ["at the end\\"]),
        ("日本,Ж", ["日本", "Ж"]),
    ],
)
def test_class_lists(text, names):
    assert class_list(text) == names


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)


@given(st.lists(NAMES.filter(str.strip), min_size=1, max_size=4, unique=True))
def test_every_name_can_be_written(names):
    """A backslash before every character says any list of names."""
    assert class_list(",".join("".join(f"\\{character}" for character in name) for name in names)) == names


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not empty"),
        ("0,,1", "not empty"),
        ("0,", "not empty"),
        (" , ", "not empty"),
        ("0,1,0", "more than once: '0'"),
        ("a\nb", "control character"),
        ("x" * 201, "201 characters"),
    ],
)
def test_class_lists_that_cannot_be(text, told):
    with pytest.raises(ValueError, match=told):
        class_list(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, None),
        ("150000", 150_000),
        ("300k", 300_000),
        ("1.2M", 1_200_000),
        ("1.1m", 1_100_000),
        ("2G", 2 * 10**9),
        (" 4.35k ", 4_350),
        ("0.57M", 570_000),
        ("0", 0),
    ],
)
def test_sizes(text, number):
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "lots", "-3", "3 k", "1,000", "1e6", "k", "3kk", "0x10", "²"])
def test_sizes_that_cannot_be(text):
    with pytest.raises(ValueError, match="300k"):
        size(text)


def test_words():
    assert words(None) is None
    assert words(" tensorboard, wandb ,trackio") == ("tensorboard", "wandb", "trackio")
    assert words("tensorboard,") == ("tensorboard", "")


def test_new_folders(tmp_path):
    new_folder(tmp_path / "new")
    new_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="not an empty folder"):
            new_folder(taken)
        with pytest.raises(ValueError, match="--resume latest"):
            new_run(taken)


def test_new_files(tmp_path):
    new_file(tmp_path / "a.png", ".png")
    new_file(tmp_path / "a.PNG", ".png")
    (tmp_path / "folder.png").mkdir()
    for path, told in (
        (tmp_path / "a.jpg", "must end in .png"),
        (tmp_path / "folder.png", "is a folder"),
        (tmp_path / "nowhere" / "a.png", "nowhere is not a folder"),
    ):
        with pytest.raises(ValueError, match=told):
            new_file(path, ".png")
