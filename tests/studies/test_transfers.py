"""The novel and the shift study at tiny scale: every strategy runs, cells are kept, words follow from the figures."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest

from kindgene.studies import transfers
from kindgene.studies.kept import kept
from kindgene.studies.transfers import RATED, RATES, SCALES, run_transfers, transfer_settings
from kindgene.studies.transfers_report import (
    CONTROL,
    FULL,
    KIND,
    SCRATCH,
    summarise,
    transfers_table,
    verdict,
    write_transfers,
)
from kindgene.transfer.strategies import STRATEGIES


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("transfers")


@pytest.fixture(scope="module", autouse=True)
def one_rate():
    """A third of the trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfers, "RATES", {name: rates[1:2] for name, rates in RATES.items()})
        yield


@pytest.fixture(scope="module")
def novel(out):
    return run_transfers(out, "novel", scale="tiny", cache=out / "cache")


def test_every_strategy_has_rates_and_a_row(novel):
    assert set(RATES) == set(STRATEGIES)
    assert all(len(set(rates)) == 3 for rates in RATES.values())
    (rows,) = novel["tasks"].values()
    assert set(rows) == {*STRATEGIES, *(f"{name}-equal" for name in RATED)}
    for found in rows.values():
        assert found["test"] > 0
        assert len(found["validation"]) == 2
    equal = rows["class_lora-equal"]
    assert equal["trainable"] == rows["kind"]["trainable"]


def test_what_is_finished_is_not_computed_again(novel, out, stages):
    heard, show = stages()
    assert run_transfers(out, "novel", scale="tiny", cache=out / "cache", progress=show) == novel
    assert heard == []


def test_the_studies_share_what_was_pre_trained(novel, out, stages, monkeypatch):
    few = replace(SCALES["tiny"], strategies=tuple(STRATEGIES))
    assert few == SCALES["tiny"]
    monkeypatch.setattr(transfers, "RATED", ())
    heard, show = stages()
    shift = run_transfers(out, "shift", scale="tiny", cache=out / "cache", progress=show)
    assert heard
    assert not any(stage.name in ("decomposable", "dense") for stage in heard)
    assert shift["pretraining"] == novel["pretraining"]
    assert set(shift["tasks"]) == {"stars"}


def test_it_is_written_for_reading_and_for_programs(novel, tmp_path):
    write_transfers(tmp_path, [novel, {**novel, "seed": 1}])
    found = json.loads((tmp_path / "novel.json").read_text())
    assert found["seeds"] == [0, 1]
    assert transfers_table(found) == (tmp_path / "novel.md").read_text()
    page = (tmp_path / "novel.html").read_text()
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert (tmp_path / "novel.png").read_bytes().startswith(b"\x89PNG")


def told(losses, study="shift"):
    """The verdict on one task with these test losses."""
    costs = {"rank": None, "trainable": 10, "travels": 10, "parameters": 20, "macs": 30, "rate": 0.1}
    rows = {row: {**costs, "test": loss, "validation": [loss]} for row, loss in losses.items()}
    result = {"study": study, "scale": "tiny", "seed": 0, "settings": {}, "tasks": {"t": rows}}
    return " ".join(verdict(summarise([result])))


def test_the_words_follow_from_the_figures():
    worse = told({KIND: 0.9, "lora-equal": 1.0, "oft-equal": 1.2, CONTROL: 0.8, FULL: 1.1, SCRATCH: 1.0})
    assert "-10.0 % against the best adapter at as many trained numbers (LoRA" in worse
    assert "+12.5 % against per-class LoRA on the dense twin" in worse
    assert "carrying everything over hurts (full fine-tuning against scratch: +10.0 %)" in worse
    even = told({KIND: 1.0, CONTROL: 1.005, FULL: 0.9, SCRATCH: 1.0})
    assert "even with per-class LoRA" in even
    assert "does not hurt" in even
    assert "scratch:" not in told({KIND: 1.0, FULL: 0.9, SCRATCH: 1.0}, study="novel")


def test_a_row_that_could_not_be_is_told():
    row = {"rank": 1, "trainable": 1, "travels": 1, "parameters": 1, "macs": 1, "rate": 1.0}
    rows = {
        KIND: {**row, "test": 1.0, "validation": [1.0]},
        "oft-equal": {"refused": "cannot"},
        "lora": {**row, "test": None, "validation": []},
    }
    result = {"study": "novel", "scale": "tiny", "seed": 0, "settings": {}, "tasks": {"t": rows}}
    table = transfers_table(summarise([result]))
    assert "OFT, as many numbers as KIND: cannot" in table
    assert "LoRA: it diverged at every rate" in table


def test_results_of_other_settings_are_not_mixed(tmp_path):
    file = tmp_path / "cells" / "a.json"
    assert kept(file, {"x": 1}, lambda: {"y": 2}) == {"y": 2}
    assert kept(file, {"x": 1}, lambda: {"y": 3}) == {"y": 2}
    with pytest.raises(ValueError, match=r"a\.json was computed with other settings"):
        kept(file, {"x": 2}, lambda: {})


def test_a_scale_that_is_not_there():
    with pytest.raises(ValueError, match="no scale 'huge'; there is tiny, mini, full"):
        transfer_settings("huge")
    assert isinstance(SCALES, MappingProxyType)
