"""A study's report: what the figures say, tables and pictures; as Markdown, JSON, PNG and one self-contained page.

The Markdown file, the pictures and the JSON can stand in a repository as they are: they say by which command, where and
with what they were made.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from kindgene.files import write_bytes, write_json
from kindgene.studies.wording import of_command, of_measuring
from kindgene.training.environment import environment


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column is of names. `notes` stand below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += [f"| {' | '.join(self.head)} |", "|---|" + "---:|" * (len(self.head) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Picture:
    """A PNG, kept as ``FILE.png``, and what is to be seen on it."""

    file: str
    caption: str
    data: bytes

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.data).decode()


@dataclass(frozen=True)
class Report:
    """What a study has to tell. `about`: paragraphs on what was done; `verdict`: sentences that the figures say."""

    title: str
    about: Sequence[str]
    verdict: Sequence[str]
    tables: Sequence[Table]
    pictures: Sequence[Picture]

    def text(self) -> str:
        """Verdict and tables, for a terminal."""
        told = "\n".join(f"- {sentence}" for sentence in self.verdict)
        return "\n".join([told + "\n", *(table.markdown() for table in self.tables)])


def write_report(
    folder: Path, summary: Mapping[str, Any], results: Sequence[Mapping[str, Any]], report: Report
) -> None:
    """Writes README.md, NAME.json, NAME.html and the pictures into `folder`; NAME is the study's.

    `results` are one a seed; where cells keep their samples on this machine is left out of the JSON. What figures were
    measured with (``measured_with`` of the first result) and the machine are written once.
    """
    name, made = summary["study"], made_with(summary)
    measured = results[0].get("measured_with")
    told = [made] if measured is None else [made, of_measuring(measured)]
    folder.mkdir(parents=True, exist_ok=True)
    for picture in report.pictures:
        write_bytes(folder / f"{picture.file}.png", picture.data)
    lines = [f"# {report.title}", ""]
    for paragraph in told:
        lines += [paragraph, ""]
    for paragraph in report.about:
        lines += [paragraph, ""]
    lines += [f"- {sentence}" for sentence in report.verdict]
    for picture in report.pictures:
        lines += ["", f"![{picture.caption}]({picture.file}.png)", "", f"*{picture.caption}*"]
    for table in report.tables:
        lines += ["", table.markdown().rstrip()]
    lines += ["", f"[All figures, of every seed]({name}.json)"]
    write_bytes(folder / "README.md", ("\n".join(lines) + "\n").encode())
    loader = jinja2.PackageLoader("kindgene.studies", "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = pages.get_template("study.html.j2").render(report=report, made=" ".join(told).replace("`", ""))
    write_bytes(folder / f"{name}.html", page.encode())
    once = ("pictures", "measured_with")
    runs = [{key: value for key, value in result.items() if key not in once} for result in results]
    found = environment()
    machine = {"machine": found["machine"], "versions": found["versions"]}
    write_json(
        folder / f"{name}.json", {**summary, "made": made, "measured_with": measured, "made_on": machine, "runs": runs}
    )


def made_with(summary: Mapping[str, Any]) -> str:
    """The command that gives these figures, and where and when they were put together."""
    study, scale, seeds = summary["study"], summary["scale"], summary["seeds"]
    first = f" --seed {seeds[0]}" if seeds[0] else ""
    found = environment()
    machine, versions = found["machine"], found["versions"]
    device = machine["gpus"][0]["name"] if machine["gpus"] else f"{machine['cpus']} CPU cores"
    command = f"kindgene study {study} --scale {scale}{of_command(summary)} --seeds {len(seeds)}{first}"
    return (
        f"`{command}`; {device}, torch {versions['torch']}, kindgene {versions['kindgene']}, "
        f"{datetime.date.today():%d %B %Y}."
    )
