"""The guard against lost speed: ratios within one process, with bounds that a loaded machine keeps too."""

import pytest
import torch

from kindgene.benchmarks.models import Shape, batch_of, decomposable_model, dense_model
from kindgene.benchmarks.report import bars, benchmark_table
from kindgene.benchmarks.run import PARTS, run_benchmark, write_benchmark
from kindgene.benchmarks.timing import clock, take_turns
from kindgene.benchmarks.training_step import Step, build, measure_growth, measure_steps

GUARDED = Shape("DiT-B/4", 168, 4, 8)


@pytest.fixture(autouse=True)
def one_thread():
    """With one thread it is the process's own work that is timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_training_step_costs_less_than_the_dense_one():
    """About 0.55 where it was measured; composing the layers of many operations costs 0.8 and more."""
    times = measure_steps(GUARDED, 150, 5, ("decomposable", "dense"))
    assert times["decomposable"]["forward_backward"] < 0.75 * times["dense"]["forward_backward"]


def test_a_step_does_not_grow_with_the_classes():
    """About 1.0 where it was measured; anything that follows all classes costs a hundred times the few."""
    times = measure_growth(Shape("DiT-S/4", 84, 1, 8), (10, 2000), 5)
    assert times[2000] < 1.5 * times[10]


@pytest.mark.parametrize("way", ["masked full rank", "per-class loop"])
def test_other_ways_compute_outputs_and_gradients(way):
    shape = Shape("DiT-S/4", 84, 2, 2)
    Step(build(way, shape, 4), batch_of(shape, 4)).whole()


def test_the_per_class_loop_is_the_same_function():
    """So that what is compared does the same work."""
    shape = Shape("DiT-S/4", 84, 2, 4)
    x, t, _ = batch_of(shape, 4)
    labels = torch.tensor([0, 4, 2, 0])
    ours, loop = build("decomposable", shape, 4).double(), build("per-class loop", shape, 4).double()
    with torch.no_grad():
        assert torch.allclose(ours(x.double(), t, labels), loop(x.double(), t, labels), rtol=1e-9, atol=1e-9)


def test_models_have_no_zero_weights():
    shape = Shape("DiT-S/4", 84, 2, 2)
    for model in (dense_model(shape, 4, depth=1), decomposable_model(shape, 4, depth=1)):
        assert all(value.any() for value in model.parameters() if value.requires_grad)


def test_turns_are_taken_forwards_and_backwards():
    order = []
    times = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert "".join(order) == "abbaab"
    assert times.keys() == {"a", "b"}
    assert clock()() >= 0


def test_the_whole_benchmark_in_small(tmp_path):
    pytest.importorskip("peft")
    told = []
    result = run_benchmark(PARTS, "tiny", told.append)
    assert tuple(told) == PARTS
    assert result["figures"].keys() == set(PARTS)
    assert len(bars(result["figures"])) == 9
    table = benchmark_table(result)
    assert "| decomposable |" in table
    assert str(torch.__version__) in table
    write_benchmark(tmp_path, result, table)
    assert {path.name for path in tmp_path.iterdir()} == {"performance.json", "performance.md"}


def test_an_unknown_part_or_size_is_refused():
    with pytest.raises(ValueError, match="there is no speed; parts: steps, growth"):
        run_benchmark(("speed",), "tiny", print)
    with pytest.raises(ValueError, match="there is no huge"):
        run_benchmark(("steps",), "huge", print)
