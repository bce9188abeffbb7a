"""kindgene demo: the verb; what the demo itself does is tested in tests/studies."""

import json
import signal

import pytest


@pytest.fixture
def no_figures(monkeypatch):
    """The report's figures take most of a tiny demo's time."""
    monkeypatch.setattr("kindgene.studies.demo.write_report", lambda path, result: path.write_text("a report"))


@pytest.mark.usefixtures("no_figures")
def test_interrupted_and_run_again(kindgene, monkeypatch, tmp_path):
    tiny = ("demo", "--scale", "tiny", "--seed", 3, "--out", tmp_path / "demo")
    with monkeypatch.context() as patch:
        patch.setattr("kindgene.progress.RichProgress.update", lambda *figures: signal.raise_signal(signal.SIGINT))
        told = kindgene(*tiny, code=130).err
    assert told.startswith("kindgene: interrupted: SIGINT after step 1 of ")
    assert told.endswith("; run the same command again to go on from there\n")

    told = kindgene(*tiny).out.splitlines()
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["seed"] == 3
    rows = [report["base"], report["dense"], *report["recombined"].values(), *report["transfer"].values()]
    assert len(told) == len(rows) + 1
    for line, row in zip(told, rows, strict=False):
        assert line.startswith(row["title"])
        assert f"recognised {row['recognised']:.3f}" in line
        assert f"{row['parameters']:,} parameters" in line
    assert told[-1] == f"report: {tmp_path / 'demo' / 'report.html'}"


@pytest.mark.parametrize(("scale", "parameters"), [("mini", 724_996), ("tiny", None)])
def test_a_dry_run_tells_and_leaves_nothing(kindgene, tmp_path, scale, parameters):
    facts = json.loads(kindgene("demo", "--dry-run", "--scale", scale, "--seed", 4, "--out", tmp_path / "demo").out)
    assert (facts["seed"], facts["out"]) == (4, str(tmp_path / "demo"))
    assert facts["base_classes"] == list("012345")
    assert facts["pretrain_steps"] > 0
    for model in ("base", "dense"):
        assert facts[model]["parameters"] > 0
        assert facts[model]["macs"] > 0
    assert parameters in (None, facts["dense"]["parameters"])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_leaves_all_as_it_was(refused, tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert "not a demo's" in refused("demo", "--scale", "tiny", "--out", tmp_path)
    assert "there is tiny, mini" in refused("demo", "--scale", "huge", "--out", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
