"""The demo at tiny scale: its report, and that it goes on where it was and touches nothing that is not its own."""

import json
import shutil
import signal

import pytest

from kindgene import Pool
from kindgene.evaluation.cost import measure_cost
from kindgene.studies.demo import describe_demo, run_demo
from kindgene.studies.settings import demo_settings
from kindgene.training.checkpoint import latest_checkpoint

TIMINGS = {"seconds", "sampling_seconds", "wall_seconds", "decompose_seconds"}


def figures(report):
    """A report without what a clock says."""
    if not isinstance(report, dict):
        return report
    return {key: figures(value) for key, value in report.items() if key not in TIMINGS}


@pytest.fixture
def no_figures(monkeypatch):
    """The report's figures take most of a tiny demo's time, and are tested on the finished one."""
    monkeypatch.setattr("kindgene.studies.demo.write_report", lambda path, result: path.write_text("a report"))


def test_the_report_has_every_figure(demo):
    report = json.loads((demo.out / "report.json").read_text())
    assert report == demo.report
    assert 0.97 < report["classifier_accuracy"] <= 1
    rows = {
        "base": report["base"],
        "dense": report["dense"],
        **{name: report["recombined"][name] for name in ("0,1,2", "4", "4@half")},
        **{name: report["transfer"][name] for name in ("kind", "full_finetune")},
    }
    for name, row in rows.items():
        assert 0 <= row["recognised"] <= 1, name
        assert row["seconds"] >= 0, name
        for key in ("parameters", "macs", "bytes"):
            assert row[key] > 0, name
        assert 0 <= row["trainable_parameters"] <= row["parameters"], name
        assert len(row["per_class"]) == len(row["classes"]), name
    assert report["base"]["classes"] == list("012345")
    assert report["recombined"]["0,1,2"]["classes"] == list("012")
    assert report["recombined"]["4@half"]["classes"] == ["4"]
    assert report["transfer"]["kind"]["classes"] == list("6789")
    assert (report["seed"], report["scale"]) == (0, "tiny")


def test_the_figures_are_those_of_the_pool_it_left(demo):
    pool = Pool.from_pretrained(demo.out / "pool")
    assert pool.classes == tuple("012345")
    assert pool.config.provenance["seed"] == 0
    found = demo.report["recombined"]
    for name, classes in (("0,1,2", list("012")), ("4", ["4"])):
        assert measure_cost(pool.recombine(classes)).to_dict().items() <= found[name].items()
    half = found["4@half"]
    assert half["parameters"] <= half["budget"] == found["4"]["parameters"] // 2
    assert demo.report["pool_bytes"] == sum(p.stat().st_size for p in (demo.out / "pool").rglob("*") if p.is_file())
    assert demo.report["recombined_difference_from_base"] < 1e-4


def test_kind_trains_tailors_alone_and_the_others_everything(demo):
    kind, full = demo.report["transfer"]["kind"], demo.report["transfer"]["full_finetune"]
    assert sum(kind["trained"].values()) == kind["trainable_parameters"] < kind["parameters"] / 2
    assert all(name.startswith("bank.") for name in kind["trained"])
    assert full["trainable_parameters"] > 0.9 * full["parameters"]
    settings = demo_settings("tiny")
    assert demo.report["base"]["steps"] == demo.report["dense"]["steps"] == settings.pretrain_steps
    assert kind["steps"] == full["steps"] == settings.transfer_steps


def test_every_stage_is_shown_from_its_first_step_to_its_last(demo):
    assert [stage.name[:3] for stage in demo.stages] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(stage.began == 0 and stage.reached == stage.total and stage.closed for stage in demo.stages)


def raise_interrupt():
    raise KeyboardInterrupt


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("press", "kept"),
    [(lambda: signal.raise_signal(signal.SIGINT), 3), (raise_interrupt, 2)],
    ids=["between steps", "at once"],
)
def test_interrupted_it_goes_on_where_it_was(demo, stages, tmp_path, press, kept):
    """Ctrl-C in stage 2 saves at once; a second one does not wait: the checkpoint before counts."""
    out = tmp_path / "demo"
    seen, show = stages(("2/4", 3, press))
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, seed=0, scale="tiny", progress=show)
    assert [stage.name[:3] for stage in seen] == ["1/4", "2/4"]
    assert all(stage.closed for stage in seen)
    assert latest_checkpoint(out / "dense" / "checkpoints").step == kept
    assert not (out / "report.json").exists()

    seen, show = stages()
    report = run_demo(out, seed=0, scale="tiny", progress=show)
    assert [stage.began for stage in seen] == [seen[0].total, kept, 0, 0]
    assert figures(report) == figures(demo.report)


@pytest.mark.usefixtures("no_figures")
def test_finished_it_starts_anew(demo, stages, tmp_path):
    out = shutil.copytree(demo.out, tmp_path / "demo")
    (out / "notes.txt").write_text("mine")
    (out / "pool" / "stale").write_text("old")
    seen, show = stages()
    report = run_demo(out, seed=0, scale="tiny", progress=show)
    assert [stage.began for stage in seen] == [0, 0, 0, 0]
    assert figures(report) == figures(demo.report)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "pool" / "stale").exists()


@pytest.mark.usefixtures("no_figures")
def test_another_seed_is_another_demo(demo, stages, tmp_path):
    """What was begun with one seed is not gone on with under another."""
    out = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, seed=0, scale="tiny", progress=stages(("1/4", 3, raise_interrupt))[1])
    seen, show = stages()
    report = run_demo(out, seed=1, scale="tiny", progress=show)
    assert [stage.began for stage in seen] == [0, 0, 0, 0]
    assert report["base"]["final_loss"] != demo.report["base"]["final_loss"]


def test_a_folder_that_is_not_a_demos_is_refused_untouched(tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is not a demo's folder"):
            run_demo(out, scale="tiny")
    assert (tmp_path / "pool" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == 3


def test_an_unknown_scale_is_refused_before_anything(tmp_path):
    with pytest.raises(ValueError, match="there is tiny, mini"):
        run_demo(tmp_path / "demo", scale="huge")
    assert not list(tmp_path.iterdir())


def test_what_it_would_do_is_told():
    told = describe_demo("tiny")
    assert told.items() >= demo_settings("tiny").to_dict().items()
    assert (told["base_classes"], told["novel_classes"]) == (list("012345"), list("6789"))
    json.dumps(told)


def test_another_program_s_marker_is_no_licence_to_delete(tmp_path):
    out = tmp_path / "mine"
    (out / "pool").mkdir(parents=True)
    (out / "pool" / "precious").write_text("mine")
    for marker in ('{"demo": "other"}', "[]"):
        (out / "demo.json").write_text(marker)
        with pytest.raises(ValueError, match="is not a demo's folder"):
            run_demo(out, scale="tiny")
        assert (out / "pool" / "precious").read_text() == "mine"
