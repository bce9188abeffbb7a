"""The novel and the shift study at tiny scale: every strategy runs, they share what is pre-trained, words follow."""

import json
from dataclasses import replace

import pytest

from kindgene.studies import transfers
from kindgene.studies.cell import Curve
from kindgene.studies.cells import run_cells
from kindgene.studies.transfer_settings import RATED, RATES, SCALES
from kindgene.studies.transfers import Novel, Shift
from kindgene.studies.transfers_report import (
    CONTROL,
    FULL,
    KIND,
    NULL_TAILOR,
    SCRATCH,
    _table,
    summarise,
    verdict,
    write_transfers,
)
from kindgene.transfer.strategies import STRATEGIES


@pytest.fixture(scope="module")
def novel(tmp_path_factory):
    """All cells of seed 0. Not to be changed."""
    out = tmp_path_factory.mktemp("studies")
    cells = Novel(out, scale="tiny", cache=out / "cache")
    done, of = run_cells([cells])
    assert done == of == 2 + 2 * (len(STRATEGIES) + len(RATED))
    return cells


@pytest.fixture(scope="module")
def result(novel):
    return novel.result()


def test_every_strategy_has_a_row(result, novel):
    (task,) = result["tasks"].values()
    rows = task["rows"]
    assert set(rows) == {*STRATEGIES, *(f"{name}-equal" for name in RATED)}
    for found in rows.values():
        assert found["test"] > 0
        assert len(found["validation"]) == 2
        assert set(found["recognised"]) == set(found["fd"]) == {"1.0", "1.5"}
    assert rows["class_lora-equal"]["trainable"] == rows["kind"]["trainable"]
    assert rows["heur_lg"]["blocks"] == [1]  # half of two, the last
    assert len(rows["auto_lg"]["blocks"]) == 1
    assert rows["kind"]["blocks"] == []
    assert len(task["classes"]) == 2
    assert not set(task["classes"]) & set(novel.base.source.base)


def test_what_a_step_costs_is_told_of_every_row(result):
    assert set(result["costs"]) == set(next(iter(result["tasks"].values()))["rows"])
    for found in result["costs"].values():
        assert found["step_seconds"] > 0
        assert found["memory"] > 0
    # Adam's moments are of trained numbers alone.
    assert result["costs"]["linear_probe"]["memory"] < result["costs"]["full_finetune"]["memory"]


def test_it_says_what_figures_were_measured_with(result):
    found = result["measured_with"]
    assert found["sampler"] == "ddim"
    assert found["sampling_steps"] == 2
    assert found["samples_per_class"] == 2
    assert found["weights"] == "EMA"
    assert found["extractor"]["name"] == "quick"
    assert len(found["extractor"]["sha256"]) == 64
    assert found["judge"]["novel-0"]["kind"] == "network"


def test_what_is_finished_is_not_computed_again(result, novel, stages):
    heard, show = stages()
    assert Novel(novel.root, scale="tiny", cache=novel.cache, show=show).result() == result
    assert heard == []
    assert not [path for path in (novel.folder / "runs").rglob("*") if path.is_file()]  # checkpoints are large


def test_a_cell_again_gives_the_same_figures(novel, tmp_path):
    cells = Novel(tmp_path, scale="tiny", cache=novel.cache)
    name = "novel-0/kind/final"
    assert {**cells.get(name), "seconds": None} == {**novel.get(name), "seconds": None}
    assert cells.picture(name).read_bytes() == novel.picture(name).read_bytes()


def test_the_studies_share_what_was_pre_trained(novel, stages, monkeypatch):
    few = replace(SCALES["tiny"], shift_rows=("kind", "full_finetune", "scratch"))
    monkeypatch.setattr(transfers, "SCALES", {"tiny": few})
    heard, show = stages()
    shift = Shift(novel.root, scale="tiny", cache=novel.cache, show=show)
    found = shift.result()
    assert heard
    began = {stage.name.partition("/")[0] for stage in heard if stage.began is not None}
    assert began == {"stars"}  # nothing was pre-trained again
    assert set(found["tasks"]) == {"stars"}
    assert set(found["tasks"]["stars"]["rows"]) == set(few.shift_rows)


def test_every_rate_is_tried_and_the_best_is_taken(novel, tmp_path, monkeypatch):
    monkeypatch.setattr(transfers, "SCALES", {"tiny": replace(SCALES["tiny"], whole_grid=True)})
    cells = Novel(tmp_path, scale="tiny", cache=novel.cache)
    found = cells.row("novel-0", "full_finetune")
    assert set(found["rates"]) == {f"{rate:g}" for rate in RATES["full_finetune"]}
    assert f"{found['rate']:g}" == min(found["rates"], key=lambda rate: found["rates"][rate][-1])


def test_it_is_written_for_reading_and_for_programs(result, tmp_path):
    report = write_transfers(tmp_path, [result, {**result, "seed": 1}])
    found = json.loads((tmp_path / "novel.json").read_text())
    assert found["seeds"] == [0, 1]
    told = (tmp_path / "README.md").read_text()
    assert all(sentence in told for sentence in report.verdict)
    assert "per-class LoRA on the dense twin" in told
    page = (tmp_path / "novel.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page
    assert (tmp_path / "samples-novel-0.png").read_bytes().startswith(b"\x89PNG")


COSTS = {
    "rank": 1,
    "blocks": [],
    "trainable": 10,
    "travels": 10,
    "parameters": 20,
    "macs": 30,
    "rate": 0.1,
    "rates": {},
}
FIGURES = {"validation": [1.0], "recognised": {"1.0": 1.0}, "fd": {"1.0": 1.0}, "seconds": 1.0}


def summary(rows, study="shift"):
    task = {"classes": ["a"], "real": {"recognised": 1.0, "fd": 0.0}, "rows": rows}
    return summarise([{"study": study, "scale": "tiny", "seed": 0, "settings": {}, "costs": {}, "tasks": {"t": task}}])


def said(losses, study="shift"):
    """The verdict on one task with these test losses."""
    rows = {row: {**COSTS, **FIGURES, "test": loss} for row, loss in losses.items()}
    return " ".join(verdict(summary(rows, study)))


def test_the_words_follow_from_the_figures():
    worse = said({KIND: 0.9, "lora-equal": 1.0, "oft-equal": 1.2, CONTROL: 0.8, FULL: 1.1, SCRATCH: 1.0})
    assert "the best adapter at as many trained numbers (LoRA, as many numbers as KIND): -10.0 %" in worse
    assert "per-class LoRA on the dense twin, the control: +12.5 %" in worse
    assert "carrying everything over hurts here (negative transfer): full fine-tuning against scratch +10.0 %" in worse
    assert "not worse than scratch" in worse
    even = said({KIND: 1.02, CONTROL: 1.025, FULL: 0.9, SCRATCH: 1.0})
    assert "the control: even (-0.5 %)" in even
    assert "does not hurt here" in even
    assert "fresh tailors is worse than scratch" in even
    assert "scratch:" in said({KIND: 1.0, FULL: 0.9, SCRATCH: 1.0}, study="novel")
    assert "negative transfer" not in said({KIND: 1.0, FULL: 0.9, SCRATCH: 1.0}, study="novel")
    assert said({FULL: 1.0}) == "t: KIND could not be measured."


def guided(changes):
    """What is said of Frechet distances at guidance 1.0 and 1.5 of each row."""
    found = {"validation": [1.0], "recognised": {"1.0": 1.0, "1.5": 1.0}, "seconds": 1.0, "test": 1.0}
    rows = {row: {**COSTS, **found, "fd": dict(zip(("1.0", "1.5"), two, strict=True))} for row, two in changes.items()}
    (sentence,) = [one for one in verdict(summary(rows)) if "FD from guidance" in one]
    return sentence


def test_what_guidance_does_is_told():
    told = guided({KIND: (10.0, 30.0), FULL: (10.0, 9.0), SCRATCH: (20.0, 18.0)})
    assert "FD from guidance 1.0 to 1.5: KIND 10.0 to 30.0, full fine-tuning 10.0 to 9.0" in told
    assert "full fine-tuning's better: KIND's null class is the learngene alone" in told
    mended = guided({KIND: (10.0, 30.0), NULL_TAILOR: (10.0, 11.0), FULL: (10.0, 9.0), SCRATCH: (20.0, 18.0)})
    assert mended.endswith("A null tailor of its own mends that.")
    worse = guided({KIND: (10.0, 30.0), NULL_TAILOR: (10.0, 31.0), FULL: (10.0, 9.0), SCRATCH: (20.0, 18.0)})
    assert worse.endswith("A null tailor of its own does not mend that.")
    assert "fine-tuning's hardly worse" in guided({KIND: (10.0, 30.0), FULL: (10.0, 10.5), SCRATCH: (20.0, 18.0)})
    assert "worse here" not in guided({KIND: (10.0, 30.0), FULL: (10.0, 29.0), SCRATCH: (20.0, 18.0)})
    assert "worse here" not in guided({KIND: (10.0, 9.0), FULL: (10.0, 9.0), SCRATCH: (20.0, 18.0)})


def test_the_blocks_that_a_learngene_keeps_are_told():
    rows = {KIND: {**COSTS, **FIGURES, "test": 1.0}, "auto_lg": {**COSTS, **FIGURES, "test": 2.0, "blocks": [1, 2]}}
    found = summary(rows)
    costs = {row: {"step_seconds": 0.0125, "memory": 3e6} for row in rows}
    one = _table("t", found["tasks"]["t"], costs)
    assert "Auto-LG on DiT (ours) keeps blocks 2, 3 of the dense twin, counted from 1." in one.notes
    assert ["12", "3"] in [row[5:7] for row in one.rows]
    found["tasks"]["t"]["rows"]["auto_lg"]["blocks"] = [[0, 1], [2, 3]]
    (note,) = [note for note in _table("t", found["tasks"]["t"], costs).notes if "Auto-LG" in note]
    assert note.endswith("by seed: blocks 1, 2; 3, 4.")


def test_a_row_that_could_not_be_is_told():
    rows = {KIND: {**COSTS, **FIGURES, "test": 1.0}, "oft-equal": {"refused": "cannot"}}
    found = summary(rows)
    assert found["tasks"]["t"]["rows"]["oft-equal"] == {"refused": "cannot"}


def test_a_budget_that_cannot_be_met_and_a_training_that_diverges_are_kept_as_such(novel, tmp_path, monkeypatch):
    def cannot(*some):
        raise ValueError("no rank trains so few")

    cells = Novel(novel.root, scale="tiny", cache=novel.cache)
    monkeypatch.setattr(transfers, "rank_for_budget", cannot)
    assert cells.compute("novel-0/lora-equal/final") == {"refused": "no rank trains so few"}
    monkeypatch.setattr(transfers, "train_curve", lambda *some: Curve([], None))
    other = Novel(tmp_path, scale="tiny", cache=novel.cache)
    monkeypatch.setattr(other, "base", novel.base)
    assert other.get("novel-0/full_finetune/final") == {"refused": "training diverged at every learning rate: 0.003"}


def test_what_is_wrong_with_the_study_is_no_result_of_a_row(novel, tmp_path, monkeypatch):
    """Figures of other settings are an error, not a row that could not be measured."""
    cells = Novel(novel.root, scale="tiny", cache=novel.cache)
    monkeypatch.setattr(cells.base, "told", {"other": "settings"})
    with pytest.raises(ValueError, match="computed with other settings"):
        cells.compute("novel-0/kind/final")
