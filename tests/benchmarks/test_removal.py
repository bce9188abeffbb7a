"""benchmarks/removal.py at tiny scale: each case is measured, the table says what was found. No figure is tested."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "removal.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("removal", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.DRAWN_ALONE, module.DRAWN_OF_CLASS = 12, 6
    return module


def test_measures_every_case_and_prints_tables(script, tmp_path, capsys):
    tiny = ["--preset", "tiny/2", "--pretrain-steps", "2", "--steps", "1", "2", "--seed", "5", "--seeds", "2"]
    script.main([*tiny, "--json", str(tmp_path / "removal.json")])
    record = json.loads((tmp_path / "removal.json").read_text())
    assert [result["seed"] for result in record["results"]] == [5, 6]
    for result in record["results"]:
        assert list(result["relearned"]) == list(script.CASES)
        assert all(list(steps) == ["0", "1", "2"] for steps in result["relearned"].values())
        assert all(sum(result[key].values()) == pytest.approx(1) for key in ("learngene_draws", "control_draws"))
        assert result["same_draws_before_removal"]
        assert result["relearned"]["new 7"]["0"]["recognised"] == result["learngene_draws"]["7"]
    printed = capsys.readouterr()
    assert "| removed 4 |" in printed.out
    assert "| recognised, %, after | 0 steps | 1 steps | 2 steps |" in printed.out
    assert "seed 6" in printed.err


def test_the_learngene_after_removal_is_the_one_that_saw_the_class(script, capsys):
    result = script.run(0, preset="tiny/2", pretrain_steps=2, steps=(1,))
    seen, never = (result["relearned"][case][0]["validation_loss"] for case in (script.CASES[0], script.CASES[2]))
    assert seen != never
    assert capsys.readouterr().err.startswith("seed 0, ")
