"""Class names: which are refused, and that no name ever becomes a path of its own or another name's file."""

import hashlib
from pathlib import PurePosixPath, PureWindowsPath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kindgene.pool.names import LONGEST_NAME, TAILOR_FILE, check_class_names, known_names, quoted, tailor_file
from kindgene.pool.tailor import Tailor

DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=LONGEST_NAME).filter(str.strip)
TRICKY = st.sampled_from(
    (
        *("../../x", "..", ".", "a/b", "a\\b", "C:\\x", "/etc/passwd", "CON", "con.txt", "~", "-rf", "x" * 200),
        *("é", "e\u0301", "É", "Å", "\u212b", "ß", "SS", "ſ", "Straße", "\u202egnp", "文字", "🦊", "a b", " a", "a "),
    )
)


def path_of(name):
    """The file that a pool writes for a tailor of this class with always the same tensors."""
    data = Tailor((name,), {"x.u": torch.ones(1, 2), "x.s": torch.ones(1), "x.v": torch.ones(1, 2)}, {}).to_bytes("id")
    return tailor_file((name,), hashlib.sha256(data).hexdigest())


@given(NAMES | TRICKY)
def test_any_text_is_a_name_and_its_file_stays_in_the_pool(name):
    assert check_class_names([name]) == (name,)
    path = path_of(name)
    assert TAILOR_FILE.fullmatch(path)
    assert path.isascii()
    assert path == path.lower()
    for parts in (PurePosixPath(path).parts, PureWindowsPath(path).parts):
        assert len(parts) == 3
        assert parts[0] == "tailors"
        assert not {part.partition(".")[0] for part in parts} & DEVICES
        assert max(map(len, parts)) < 100


@given(st.lists(NAMES | TRICKY, min_size=2, max_size=12, unique=True))
def test_different_names_have_different_files(names):
    assert check_class_names(names) == tuple(names)
    assert len({path_of(name).casefold() for name in names}) == len(names)


def test_a_file_s_name_can_be_read_by_people():
    digest = "0123456789abcdef" * 4
    assert tailor_file(("Great White Shark!", "cod"), digest) == (
        "tailors/01/great-white-shark-0123456789abcdef.safetensors"
    )
    assert tailor_file(("Crème brûlée",), digest) == "tailors/01/creme-brulee-0123456789abcdef.safetensors"
    assert tailor_file(("文字",), digest) == "tailors/01/class-0123456789abcdef.safetensors"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat", "must be a list of names, got 'cat'"),
        (3, "must be a list of names, got 3"),
        ([], "no class was named; name at least one"),
        ([""], "not empty, got ''"),
        (["  "], "not empty, got '  '"),
        (["a", 3], "not empty, got 3"),
        ([b"a"], "not empty, got b'a'"),
        (["x" * 300], "has 300 characters, at most 200 fit: 'xxxx"),
        (["a\nb"], r"'a\\nb' has a control character"),
        (["a\x00b"], r"'a\\x00b' has a control character"),
        (["a\x85b"], r"'a\\x85b' has a control character"),
        (["\ud800"], "half of a surrogate pair"),
        (["a", "b", "a", "c", "b"], "more than once: 'a', 'b'$"),
    ],
)
def test_what_is_no_list_of_names_is_refused_in_one_line(names, message):
    with pytest.raises(ValueError, match=message) as refused:
        check_class_names(names)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_an_unknown_name_is_answered_with_the_nearest():
    known = ["tabby cat", "Persian cat", "dog", "tench"]
    assert known_names(known, ["dog", "tench"]) == ("dog", "tench")
    with pytest.raises(ValueError, match="no class 'taby cat' in this pool; nearest: 'tabby cat'"):
        known_names(known, ["dog", "taby cat"])
    with pytest.raises(ValueError, match="no class 'qqq' in this pool; nearest: 'tabby cat', 'Persian cat', 'dog'"):
        known_names(known, ["qqq"])
    with pytest.raises(ValueError, match="it has no classes"):
        known_names([], ["dog"])
    with pytest.raises(ValueError, match="no class 'e\u0301' in this pool; nearest: '\u00e9'"):
        known_names(["\u00e9"], ["e\u0301"])


def test_a_message_quotes_the_first_names_only():
    assert quoted("ab") == "'a', 'b'"
    assert quoted(map(str, range(12)), most=3) == "'0', '1', '2', and 9 more"
