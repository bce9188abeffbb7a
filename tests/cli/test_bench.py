"""kindgene bench: one part at tiny size, and what is refused."""

import json

from kindgene.benchmarks.run import PARTS


def test_one_part_in_small(kindgene, tmp_path):
    told = kindgene("bench", "--part", "growth", "--size", "tiny", "--out", tmp_path / "b")
    assert "| a step of 4 classes against one of 2 |" in told.out
    result = json.loads((tmp_path / "b" / "performance.json").read_text())
    assert result["figures"]["growth"].keys() == {"2", "4"}
    assert result["threads"] == 1
    assert (tmp_path / "b" / "performance.md").read_text() in told.out


def test_the_help_names_every_part(kindgene):
    assert ", ".join(PARTS) in " ".join(kindgene("bench", "--help").out.replace("│", " ").split())


def test_what_there_is_not_is_refused(refused, tmp_path):
    assert "there is no speed; parts: start, steps, growth" in refused(
        "bench", "--part", "speed", "--out", tmp_path / "b"
    )
    assert "there is no huge" in refused("bench", "--size", "huge", "--out", tmp_path / "b")
    assert "at least 1" in refused("bench", "--threads", 0)
    assert not (tmp_path / "b").exists()
