"""Progress is drawn on a terminal, told in lines elsewhere, and never on standard output."""

import io

import pytest
from rich.console import Console

from kindgene.progress import NoProgress, Progress, RichProgress


def run(progress: Progress, total: int = 20, done: int = 0) -> None:
    progress.start(total, done)
    for step in range(done + 1, total + 1):
        progress.update(step, loss=1.0 / step, images_per_second=640.0)
    progress.close()


def test_nothing_is_shown_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    run(NoProgress())
    assert capsys.readouterr() == ("", "")


def test_plain_lines_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    run(RichProgress("pretrain", Console(file=file, width=40), seconds=1000.0))
    assert file.getvalue() == "pretrain: step 20/20  loss 0.0500  640 images/s  0:00:00 left\n"
    assert "\x1b" not in file.getvalue()


def test_memory_is_shown_where_it_is_known() -> None:
    plain, terminal = io.StringIO(), io.StringIO()
    for file, console in (
        (plain, Console(file=plain)),
        (terminal, Console(file=terminal, force_terminal=True, width=120)),
    ):
        progress = RichProgress("pretrain", console, seconds=0.0)
        progress.start(2)
        progress.update(1, loss=0.5, images_per_second=640.0, memory=1.234e9)
        progress.update(2, memory=5e8)
        progress.close()
        assert "0.50 GB" in file.getvalue()
    assert plain.getvalue().startswith("pretrain: step 1/2  loss 0.5000  640 images/s  1.23 GB  ")
    assert NoProgress().update(1, memory=1.0) is None  # type: ignore[func-returns-value]


def test_plain_lines_come_as_often_as_asked() -> None:
    file = io.StringIO()
    run(RichProgress(console=Console(file=file), seconds=0.0), total=5, done=2)
    assert [line.split("  ")[0] for line in file.getvalue().splitlines()] == [
        "training: step 3/5",
        "training: step 4/5",
        "training: step 5/5",
    ]


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 110.0])
    monkeypatch.setattr("kindgene.progress.time.monotonic", lambda: next(now))
    file = io.StringIO()
    progress = RichProgress(console=Console(file=file), seconds=0.0)
    progress.start(1010, 1000)
    progress.update(1001, 0.5, 10.0)
    assert file.getvalue().endswith("0:01:30 left\n")  # 10 s a step, nine to go


def test_a_bar_on_a_terminal() -> None:
    file = io.StringIO()
    run(RichProgress("pretrain", Console(file=file, force_terminal=True, width=120)))
    shown = file.getvalue()
    for part in ("pretrain", "20/20", "loss 0.0500", "640 images/s", "left"):
        assert part in shown


def test_standard_output_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    run(RichProgress())
    out, err = capsys.readouterr()
    assert out == ""
    assert "20/20" in err


def test_closing_without_a_start() -> None:
    RichProgress().close()
