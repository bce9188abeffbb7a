"""What was left out: said in a line, and all of it in a file that is read again."""

import json
import os
from pathlib import Path

import pytest

from kindgene.data.skipped import DamagedImageError, Skipped, read_skipped, refuse, warn, write_skipped

MANY = [Skipped(f"c/{number}.png", "broken", "cannot be read", "remove it") for number in range(5)]


def test_the_warning_names_three_and_the_file_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn(MANY, "pets", 1234)
    assert caplog.messages == [
        "skipped 5 of 1,234 entries of pets (5 broken): c/0.png cannot be read; c/1.png cannot be read; "
        "c/2.png cannot be read; and 2 more"
    ]
    write_skipped(tmp_path / "skipped.jsonl", MANY)
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    expected = {"path": "c/4.png", "kind": "broken", "reason": "cannot be read", "advice": "remove it"}
    assert json.loads(lines[4]) == expected == MANY[4].to_dict()
    assert read_skipped(tmp_path / "skipped.jsonl") == tuple(MANY)


def test_of_nothing_there_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "skipped.jsonl"
    assert read_skipped(file) == ()
    write_skipped(file, [])
    assert not file.exists()
    write_skipped(file, MANY)
    write_skipped(file, [])
    assert not file.exists()
    warn([], "pets", 3)
    refuse([])
    assert not caplog.records


def test_any_file_name_is_written(tmp_path: Path) -> None:
    """Other scripts, line ends, and bytes that are no text in the file system's encoding."""
    names = ["猫/é.png", "two\nlines.png", os.fsdecode(b"\xff.png")]
    skipped = [Skipped(name, "broken", "cannot be read", "remove it") for name in names]
    write_skipped(tmp_path / "x.jsonl", skipped)
    data = (tmp_path / "x.jsonl").read_bytes()
    assert "猫/é.png" in data.decode()
    assert data.count(b"\n") == 3
    assert [each.path for each in read_skipped(tmp_path / "x.jsonl")] == names


@pytest.mark.parametrize("content", [b"{", b"{}\n", b"[1]\n", b'{"path": "a", "name": "b"}\n', b"\xff\n"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jsonl is damaged; it is a note for readers alone"):
        read_skipped(tmp_path / "x.jsonl")


def test_a_workers_error_is_made_of_its_message_alone() -> None:
    assert str(DamagedImageError("what it says")) == "what it says"
    assert DamagedImageError("what it says").skipped is None
