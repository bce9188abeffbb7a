"""Reports: the same words in Markdown and on the page; nothing of this machine but what it is."""

import json

import pytest

from kindgene.studies.page import Picture, Report, Table, made_with, write_report

SUMMARY = {"study": "novel", "scale": "tiny", "seeds": [3, 4]}
PNG = b"\x89PNG rest"


@pytest.fixture
def report():
    table = Table("all <of> it", ("model", "loss"), [("KIND & co", "0.1")], ("one note",))
    return Report("A title", ("What was done.",), ("KIND is < others.",), [table], [Picture("curves", "Curves.", PNG)])


def test_everything_is_written(report, tmp_path):
    measured = {"weights": "EMA", "loss_draws": 4}
    result = {"seed": 3, "pictures": {"a": "/some/where.png"}, "measured_with": measured, "x": 1}
    write_report(tmp_path, SUMMARY, [result], report)
    assert (tmp_path / "curves.png").read_bytes() == PNG
    found = json.loads((tmp_path / "novel.json").read_text())
    assert found["runs"] == [{"seed": 3, "x": 1}]
    assert found["measured_with"] == measured
    assert found["made_on"]["versions"]["torch"]
    assert set(found["made_on"]) == {"machine", "versions"}  # nothing of paths, commands and variables
    told, page = (tmp_path / "README.md").read_text(), (tmp_path / "novel.html").read_text()
    for text in ("A title", "What was done.", "Curves.", "one note", "4 timesteps with EMA weights"):
        assert text in told
        assert text in page
    assert "- KIND is < others." in told
    assert "KIND is &lt; others." in page
    assert "KIND &amp; co" in page
    assert 'src="http' not in page
    assert "![Curves.](curves.png)" in told
    assert found["made"] in told


def test_how_it_was_made():
    told = made_with(SUMMARY)
    assert told.startswith("`kindgene study novel --scale tiny --seeds 2 --seed 3`; ")
    assert ", torch " in told
    assert "--seed " not in made_with({**SUMMARY, "seeds": [0]})


def test_a_table_as_markdown():
    assert Table("", ("a", "b"), [("1", "2")]).markdown() == "| a | b |\n|---|---:|\n| 1 | 2 |\n"


def test_the_text_for_a_terminal(report):
    assert report.text().startswith("- KIND is < others.\n\n**all <of> it**\n")
