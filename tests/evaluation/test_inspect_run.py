"""The history of a run, through the command: what the log tells, old logs, and logs that are damaged."""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from kindgene import DiT, KindConfig, TrainConfig, load_digits, make_decomposable, train
from kindgene.cli.main import main
from kindgene.evaluation import history
from kindgene.evaluation.history import read_history, spaced
from kindgene.evaluation.history_plot import draw_history, panels
from kindgene.evaluation.plots import png
from kindgene.training.diagnostics import diagnose, gradient_norms

DIGITS = ("0", "1", "2")


def model_of() -> Any:
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", num_classes=3, class_names=DIGITS, depth=1)
    return make_decomposable(dense, KindConfig(num_classes=3, learngene_rank=4, tailor_rank=2, targets="paper"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose log knows nothing of diagnostics. Not to be changed."""
    out: Path = tmp_path_factory.mktemp("old") / "run"
    train(model_of(), load_digits().subset(DIGITS), TrainConfig(steps=4, batch_size=6, log_every=1), out=out)
    return out


@pytest.fixture(scope="module")
def run(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with diagnostics of 30 lines, at every other step, as training writes them. Not to be changed."""
    out: Path = shutil.copytree(old, tmp_path_factory.mktemp("new") / "run")
    model = model_of()
    lines = []
    for step in range(1, 61):
        line: dict[str, Any] = {"step": 100 * step, "loss": 1.0 / step, "grad_norm": 2.0, "lr": 1e-3}
        if step % 2 == 0:
            with torch.no_grad():
                model.bank.tailors.rows.mul_(1.05)
            norms = gradient_norms([torch.tensor([3.0])], [torch.tensor([4.0 / step])])
            line["diagnostics"] = diagnose(model) | {"gradient_norm": norms}
        lines.append(json.dumps(line, allow_nan=False) + "\n")
    (out / "log.jsonl").write_text("".join(lines))
    return out


def test_where_a_run_comes_from(old: Path, tmp_path: Path) -> None:
    assert "origin" not in json.loads(kindgene("inspect", old, "--json"))["record"]
    run = shutil.copytree(old, tmp_path / "run")
    told = json.loads((run / "run.json").read_text())
    data = {"data": "photos", "image_size": 8, "vae": None}
    origin = {"recipe": "folder-32", "preset": "tiny/2", "data": data, "skipped": {"total": 1200, "kinds": {}}}
    (run / "run.json").write_text(json.dumps({**told, "origin": origin}))
    assert json.loads(kindgene("inspect", run, "--json"))["record"]["origin"] == origin
    wanted = "recipe folder-32, preset tiny/2, data photos, image size 8; 1,200 skipped (skipped.jsonl)"
    assert wanted in " ".join(kindgene("inspect", run, "--sizes").split())  # lines are as wide as the terminal


def kindgene(*arguments: Any, code: int = 0) -> str:
    """What the command prints; what it says of bad input."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["kindgene", *map(str, arguments)])
        patch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stopped:
            main()
    assert (stopped.value.code or 0) == code, err.getvalue()
    return out.getvalue() if code == 0 else err.getvalue()


def test_the_history_in_json(run: Path) -> None:
    found = json.loads(kindgene("inspect", run, "--json"))["history"]
    assert found["lines"] == len(found["moments"]) == 60
    first, second = found["moments"][:2]
    assert (first["step"], first["loss"], first["grad_norm"], first["singular_largest"]) == (100, 1.0, 2.0, None)
    logged = json.loads((run / "log.jsonl").read_text().splitlines()[1])["diagnostics"]
    assert (second["learngene_gradient"], second["tailor_gradient"]) == (3.0, 2.0)
    for key in ("singular_largest", "singular_smallest", "learngene_energy", "tailor_energy", "orthogonality_v"):
        assert second[key] == logged["summary"][key]


def test_the_history_as_a_table(run: Path) -> None:
    told = kindgene("inspect", run)
    assert max(map(len, told.splitlines())) <= 80
    table = told[told.index("History") : told.index("Averaged weights")].splitlines()
    heads = " ".join(line for line in table[:5] if line)
    assert heads.split()[1:10] == ["grad.:", "energy", "orth.:", "step", "loss", "L", "T", "s", "max"]
    rows = [line.split() for line in table if line.split() and line.split()[0].replace(",", "").isdigit()]
    assert [row[0] for row in rows] == ["200", "1,000", "1,800", "2,600", "3,600", "4,400", "5,200", "6,000"]
    assert rows[0][1:4] == ["0.5", "3", "2"]
    share = [float(row[7].rstrip("%")) for row in rows]
    assert share == sorted(share)
    assert share[0] < share[-1]


def test_an_old_run_shows_its_loss(old: Path, tmp_path: Path) -> None:
    told = kindgene("inspect", old)
    table = told[told.index("History") : told.index("Averaged weights")]
    assert "gradient" in table
    assert "s max" not in table
    kindgene("inspect", old, "--plot", tmp_path / "pictures")
    assert (tmp_path / "pictures" / "history.png").is_file()
    assert panels(read_history(old / "log.jsonl")) == ["loss", "gradient norm"]  # type: ignore[arg-type]


def test_a_run_without_a_log_has_no_history(old: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(old, tmp_path / "run")
    (copy / "log.jsonl").write_text("")
    assert "History" not in kindgene("inspect", copy)
    (copy / "log.jsonl").unlink()
    assert json.loads(kindgene("inspect", copy, "--json"))["history"] is None


def test_neither_has_a_checkpoint_nor_a_listing(run: Path) -> None:
    assert "History" not in kindgene("inspect", run, "--sizes")
    checkpoint = next((run / "checkpoints").glob("step-*4"))
    assert json.loads(kindgene("inspect", checkpoint, "--json"))["history"] is None


def test_the_history_as_a_picture(run: Path, tmp_path: Path) -> None:
    kindgene("inspect", run, "--plot", tmp_path / "page.png")
    found = read_history(run / "log.jsonl")
    assert found is not None
    figure = Figure(figsize=(10, 3), layout="constrained")
    draw_history(figure, found)
    (tmp_path / "history.png").write_bytes(png(figure))
    for name in ("page", "history"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG"
    loss, gradients, *_, energy, _ = figure.axes
    assert (loss.get_yscale(), energy.get_yscale()) == ("log", "linear")
    assert [line.get_label() for line in gradients.lines] == ["all", "learngene", "tailors"]
    assert len(gradients.lines[0].get_xdata()) == 60
    assert len(gradients.lines[1].get_xdata()) == 30
    every = ["loss", "gradient norm", "singular values", "share of energy, %", "orthogonality"]
    assert panels(found) == every == [axes.get_title() for axes in figure.axes]


def test_a_line_cut_short_is_left_out_and_another_is_named(run: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": null}\n{"step": 2, "lo')
    found = read_history(log)
    assert found is not None
    assert [(moment.step, moment.loss) for moment in found.moments] == [(1, None)]
    log.write_text('{"step": 1}\n{"loss": 2}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 does not say of which step it is"):
        read_history(log)
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "log.jsonl").write_text('{"step": 1}\nnothing\n')
    assert "log.jsonl: line 2 is not JSON" in kindgene("inspect", copy, code=2)


def test_a_long_log_is_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOMENTS", 10)
    log = tmp_path / "log.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in range(1, 1001)]
    for line in lines[99::100]:
        line["diagnostics"] = {"summary": {"singular_largest": 1.0}}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_history(log)
    assert found is not None
    assert found.lines == 1000
    assert [moment.step for moment in found.moments if moment.diagnosed] == list(range(100, 1001, 100))
    assert len(found.moments) <= 20
    assert (found.moments[0].step, found.moments[-1].step) == (1, 1000)


def test_spacing() -> None:
    assert spaced(range(5), 8) == [0, 1, 2, 3, 4]
    assert spaced(range(101), 3) == [0, 50, 100]
