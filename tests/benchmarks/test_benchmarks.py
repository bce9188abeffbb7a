"""The benchmarks run at tiny scale and say what they promise; their figures are no concern of a test."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(request):
    spec = importlib.util.spec_from_file_location(request.param, FOLDER / f"{request.param}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("benchmark", ["pool_scale"], indirect=True)
def test_pools_of_many_classes(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "CHUNK", 7)
    result = benchmark.run(tmp_path / "scale", classes=20, preset="tiny/2", rank=4, repeats=2)
    assert result["classes"] == 20
    assert set(result["seconds"]) >= {"open_ratio", "list_classes", "add_one", "remove_one", "verify_all"}
    assert all(value > 0 for value in result["seconds"].values())
    assert not (tmp_path / "scale").exists()


@pytest.mark.parametrize("benchmark", ["removal"], indirect=True)
def test_what_remains_of_a_removed_class(benchmark):
    result = json.loads(json.dumps(benchmark.run(0, preset="tiny/2", pretrain_steps=3, steps=(2, 3))))
    assert sum(result["learngene_draws"].values()) == pytest.approx(1)
    assert list(result["relearned"]) == [
        "removed 4",
        "new 7",
        "4, learngene never saw it",
        "7, learngene never saw 4",
    ]
    assert result["relearned"]["new 7"]["3"]["validation_loss"] > 0
    text = benchmark.table([benchmark.run(0, preset="tiny/2", pretrain_steps=1, steps=(1,))])
    assert "removed 4" in text
