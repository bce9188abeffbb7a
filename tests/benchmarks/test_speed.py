"""The guard against lost speed: ratios within one process, with bounds that a loaded machine keeps too."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kindgene.benchmarks import run
from kindgene.benchmarks.bars import bars
from kindgene.benchmarks.gpu import STEP_WAYS
from kindgene.benchmarks.models import Shape, batch_of, decomposable_model, dense_model
from kindgene.benchmarks.report import benchmark_table
from kindgene.benchmarks.run import PARTS, run_benchmark, write_benchmark
from kindgene.benchmarks.timing import clock, take_turns
from kindgene.benchmarks.training_step import Step, build, measure_growth, measure_steps
from kindgene.core import linear

GUARDED = Shape("DiT-B/4", 168, 4, 4)
GROWN = Shape("DiT-S/4", 84, 1, 4)


@pytest.fixture(autouse=True)
def one_thread():
    """With one thread it is the process's own work that is timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_training_step_costs_less_than_the_dense_one():
    """About 0.55 where it was measured; masking the full rank costs 1.5, a matrix a sample far more."""
    times = measure_steps(GUARDED, 8, 3, ("decomposable", "dense"))
    assert times["decomposable"]["forward_backward"] < 0.75 * times["dense"]["forward_backward"]


class Written(TorchDispatchMode):
    """Counts the numbers that operations write into memory of their own: the same on every machine."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)}
        out = func(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(out) if torch.is_tensor(one)]
        self.numbers += sum(one.numel() for one in made if one.untyped_storage().data_ptr() not in before)
        return out


def test_a_step_writes_less_by_hand_than_composed(monkeypatch):
    """0.65 of what torch's own operations write, whatever the machine does; 1.0 where the hand-written path is lost."""
    shape = Shape("DiT-S/4", 84, 4, 4)
    model = build("decomposable", shape, 8)
    x, t, y = batch_of(shape, 8)

    def written():
        with Written() as counted:
            model(x, t, y).square().mean().backward()
        return counted.numbers

    by_hand = written()
    monkeypatch.setattr(linear, "_takes_fused", lambda x: False)
    assert by_hand < 0.75 * written()


def test_a_step_does_not_grow_with_the_classes():
    """About 1.0 where it was measured; anything that follows all classes costs many times the few."""
    times = measure_growth(GROWN, (4, 1000), 3)
    assert times[1000] < 1.5 * times[4]


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


def test_the_whole_benchmark_in_small(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(run, "WAYS", ("decomposable",))  # each is a process that loads torch
    told, parts = [], tuple(part for part in PARTS if part != "gpu")  # rehearsed below
    result = run_benchmark(parts, "tiny", told.append)
    assert tuple(told) == parts
    assert result["figures"].keys() == set(parts)
    assert len(bars(result["figures"], result["seconds"])) == 14
    assert result["complete"]
    assert result["units"].keys() == result["figures"].keys()
    counted = result["figures"]["roofline"]
    assert counted.keys() == {"rates", "steps", "recombined", "mixed"}
    assert counted["steps"].keys() == result["figures"]["steps"]["tiny/2"].keys()
    for part in ("recombined", "mixed"):
        assert counted[part].keys() == result["figures"][part].keys()
    assert result["figures"]["memory"].keys() == {"tiny/2"}
    assert result["part_seconds"].keys() == set(parts)
    assert sum(result["part_seconds"].values()) <= result["seconds"]
    table = benchmark_table(result)
    assert "| decomposable |" in table
    assert "| forward of a batch of 10 classes, a sample each |" in table  # there are no more in the tiny pool
    assert "| the whole benchmark | <= 600 s |" in table
    assert str(torch.__version__) in table
    write_benchmark(tmp_path, result, table)
    assert {path.name for path in tmp_path.iterdir()} == {"performance.json", "performance.md"}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_the_gpu_s_part_rehearsed_on_a_cpu(monkeypatch):
    """In full it is left out where there is no CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_benchmark(("gpu",), "full", lambda part: None)["figures"] == {}
    result = run_benchmark(("gpu",), "tiny", lambda part: None)
    found = result["figures"]["gpu"]
    assert found["step"].keys() == set(STEP_WAYS)
    assert found["layers"].keys() == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert found["sampling"].keys() == {"launched", "replayed"}
    (bar,) = bars(result["figures"])
    assert (bar.cells[1], "(floor " in bar.what) == ("<= 0.60", True)
    table = benchmark_table(result)
    assert "| mlp.fc1, ours |" in table
    assert "on a CPU, in rehearsal" in table
    torch._dynamo.reset()


def test_an_unknown_part_or_size_is_refused():
    with pytest.raises(ValueError, match="there is no speed; parts: start, steps, growth"):
        run_benchmark(("speed",), "tiny", print)
    with pytest.raises(ValueError, match="there is no huge"):
        run_benchmark(("steps",), "huge", print)
