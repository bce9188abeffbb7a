"""report.html: one file that loads nothing, shows the figures of report.json, and says what it was made of."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from PIL import Image

from kindgene.studies.report import write_report

LOADING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background", "content"}


class Page(HTMLParser):
    """The tags, what they load, the rows of tables, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.loads, self.rows, self.text, self.styles = set(), [], [], "", ""
        self.within, self.cell = [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in LOADING and tag != "meta"]
        self.styles += " ".join(value for name, value in attrs if name == "style")
        self.within.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self.within:
            self.styles += data
            return
        self.text += data
        if {"td", "th"} & set(self.within):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(demo):
    return Page((demo.out / "report.html").read_text(encoding="utf-8"))


def test_it_loads_nothing(page):
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "video", "audio", "base"}
    assert page.loads
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in page.loads)
    assert "url(" not in page.styles
    assert "@import" not in page.styles


def test_its_pictures_are_pictures(page):
    pictures = [value for value in page.loads if value.startswith("data:")]
    assert len(pictures) >= 10
    for value in pictures:
        with Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 40
            assert len(image.convert("L").getcolors(1 << 16)) > 1  # something is drawn


def test_its_table_is_the_reports(page, demo):
    report = demo.report
    rows = [report["base"], report["dense"], *report["recombined"].values(), *report["transfer"].values()]
    shown = {row[0]: row for row in page.rows if row and row[0] in {each["title"] for each in rows}}
    assert len(shown) == len(rows)
    for row in rows:
        cells = shown[row["title"]]
        assert cells[1] == f"{100 * row['recognised']:.1f} %"
        for key in ("samples", "parameters", "trainable_parameters", "macs", "bytes"):
            assert f"{row[key]:,}" in cells, key
        for key in ("seconds", "sampling_seconds"):
            assert f"{row[key]:.2f} s" in cells, key


def test_it_says_what_it_was_made_of(page, demo):
    text = " ".join(page.text.split())
    facts = demo.report
    for part in (
        f"kindgene {facts['environment']['kindgene']}",
        f"torch {facts['environment']['torch']}",
        f"seed {facts['seed']}",
        f"{100 * facts['classifier_accuracy']:.1f} %",
        f"{facts['pool_bytes']:,} bytes",
        f"{facts['recombined']['4@half']['budget']:,}",
        f"{facts['recombined_difference_from_base']:.1e}",
    ):
        assert part in text, part
    assert "{{" not in text
    assert "{%" not in text


def test_missed_aims_are_shown_as_missed(page, demo):
    """A tiny demo cannot meet its aims: nothing of it may look as if it did."""
    html = (demo.out / "report.html").read_text(encoding="utf-8")
    assert demo.report["base"]["recognised"] < 0.95
    row = re.search(rf"<td>{re.escape(demo.report['base']['title'])}</td>\s*<td class=\"(\w+)\">", html)
    assert row[1] == "bad"


def test_text_is_escaped(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("kindgene.studies.report._figures", lambda result: dict.fromkeys(_wanted(result), ""))
    facts = {**demo.result.facts, "scale": '<script>alert("x")</script>&'}
    write_report(tmp_path / "x.html", replace(demo.result, facts=facts))
    html = (tmp_path / "x.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def _wanted(result):
    return ("gate", "real", "losses", "spectra", "pareto", "ranks", "quality", *result.models)


def test_what_is_missing_is_an_error_not_a_gap(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("kindgene.studies.report._figures", lambda result: dict.fromkeys(_wanted(result), ""))
    facts = {key: value for key, value in demo.result.facts.items() if key != "classifier_accuracy"}
    with pytest.raises(UndefinedError, match="classifier_accuracy"):
        write_report(tmp_path / "x.html", replace(demo.result, facts=facts))
    assert not list(tmp_path.iterdir())
