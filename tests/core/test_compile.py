"""Guarantee 9 under torch.compile: no graph break, one graph whatever the classes, and never silently wrong."""

import functools
import shutil
import threading

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from kindgene.core.gate import GateError
from kindgene.core.linear import KindLinear
from kindgene.diffusion.sampler import sample
from kindgene.training.ema import EMA
from kindgene.training.optimizer import ModelAdamW

HARD = torch.tensor([0, 5, 3, 3, 1, 5])
OTHER = torch.tensor([1, 0, 5, 2, 4, 4])
NULL = torch.tensor([5, 5, 5, 5, 5, 5])
ONE = torch.tensor([2, 2, 2, 2, 2, 2])
THREE = torch.tensor([0, 3, 2, 2])  # for the toy of three classes

# Dynamo looks at the .grad of the views that an open gate holds, and hides the warning with which torch answers.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    """The number of graphs compiled in this test."""
    return counters["stats"]["unique_graphs"]


def gradients(model):
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-12, atol=1e-12), name


def test_one_graph_whatever_the_classes(backbone):
    """The whole model, forward and backward; `fullgraph` makes a graph break an error."""
    model, batch = backbone.model(depth=1), backbone.batch()
    compiled = functools.partial(backbone.run, Compiled(model))
    for labels in (HARD, OTHER, NULL, ONE):
        expected = backbone.run(model, batch, labels)
        expected.pow(2).sum().backward()
        wanted = gradients(model)
        found = compiled(batch, labels)
        found.pow(2).sum().backward()
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert_equal(gradients(model), wanted)
        assert not model.gate.is_open()
    assert graphs() == 1


class Compiled:
    """A compiled model beside the gate of the model that it compiles."""

    def __init__(self, model, **options):
        self.gate = model.gate
        self._call = torch.compile(model, **{"backend": "aot_eager", "fullgraph": True, **options})

    def __call__(self, *args, **kwargs):
        return self._call(*args, **kwargs)


def test_a_training_step_with_gathered_rows_checkpointing_and_autocast_is_one_graph(dit):
    """However many classes a batch happens to have: the rows at hand are padded to the batch."""
    targets = {"targets": ["*.mlp.fc1", "*.adaLN_modulation.1"], "learngene_rank": 4, "tailor_rank": 2}
    model, batch = dit.model(torch.float32, depth=1, **targets), dit.batch(torch.float32)
    model.enable_gradient_checkpointing()
    compiled = Compiled(model)

    def step(call, labels):
        rows = model.bank.gather(labels)
        with torch.autocast("cpu", torch.bfloat16):
            output = dit.run(call, batch, labels, rows)
        output.float().pow(2).sum().backward()
        found = {**gradients(model), "tailors": rows.tailors.values.grad, "labels": rows.labels.values.grad}
        return output.float(), found

    for labels in (HARD, OTHER, NULL, ONE, torch.tensor([0, 1, 2, 3, 4, 0])):
        (expected, wanted), (found, got) = step(model, labels), step(compiled, labels)
        assert (found - expected).norm() <= 1e-2 * expected.norm()
        assert got.keys() == wanted.keys()
        scale = torch.stack([value.norm() for value in wanted.values()]).norm()
        assert all((got[name] - value).norm() <= 1e-2 * scale for name, value in wanted.items())
    assert graphs() == 1


def test_a_whole_training_step_breaks_no_graph_and_compiles_once(dit):
    """Loss, backward, optimizer and average included; dynamo counts every break and every recompilation."""
    model, (x, t) = dit.model(torch.float32, depth=1), dit.batch(torch.float32)
    optimizer, average = ModelAdamW(model), EMA(model, 0.99)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for labels in (HARD, OTHER, NULL, ONE):
        rows = model.bank.gather(labels)
        compiled(x, t, labels, rows=rows).square().mean().backward()
        optimizer.step(1e-3, rows)
        average.update(rows)
        optimizer.zero_grad()
    assert backend.frame_count == graphs() == 1
    assert not counters["graph_break"]


def test_sampling_compiles_once_whatever_the_classes(dit):
    """Every step and both halves of guidance; another number of samples is another shape, and no more than that."""
    model = dit.model(torch.float32, depth=1)
    expected = [_sample(model, classes) for classes in ([0, 4, 2], [3, 3, 3], [None] * 3)]
    backend = CompileCounterWithBackend("eager")
    model.compile(backend=backend, fullgraph=True)
    found = [_sample(model, classes) for classes in ([0, 4, 2], [3, 3, 3], [None] * 3)]
    assert backend.frame_count == graphs() == 1
    assert not counters["graph_break"]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def _sample(model, classes):
    return sample(model, classes, guidance=1.5, steps=3, clip=1.0, generator=torch.Generator().manual_seed(0))


def test_a_part_compiled_by_itself_under_a_checkpoint_finds_its_own_labels(backbone):
    """Two forwards before one backward; the recomputation runs in another thread."""
    model, batch = backbone.model(depth=1).train(), backbone.batch()
    backbone.run(model, batch, HARD).pow(2).sum().backward()
    backbone.run(model, batch, OTHER).pow(2).sum().backward()
    expected = gradients(model)
    enable = functools.partial(model.module._set_gradient_checkpointing, enable=True)
    enable(gradient_checkpointing_func=model.gate.checkpoint)
    for block in getattr(model.module, backbone.blocks):
        gated = [part for part in block.children() if any(isinstance(layer, KindLinear) for layer in part.modules())]
        gated[-1].compile(backend="aot_eager", fullgraph=True)
    loss = sum(backbone.run(model, batch, labels).pow(2).sum() for labels in (HARD, OTHER))
    backward = threading.Thread(target=loss.backward)
    backward.start()
    backward.join()
    assert_equal(gradients(model), expected)
    assert graphs()


def test_two_threads_run_one_compiled_model_at_once(toy_model):
    model = toy_model()
    meeting = threading.Barrier(2, timeout=60)
    x, found = torch.randn(4, 6, dtype=torch.float64), {}
    labels = [THREE, THREE.flip(0)]
    expected = [model(x, y) for y in labels]
    model.module.compile(backend="aot_eager", fullgraph=True)
    model(x, THREE)
    before = graphs()

    def work(index):
        with model.gate(labels[index]):
            meeting.wait()  # both gates are open
            found[index] = model.module(x, labels[index])
            meeting.wait()

    workers = [threading.Thread(target=work, args=[index]) for index in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index in (0, 1):
        assert torch.allclose(found[index], expected[index], rtol=1e-12, atol=1e-12)
    assert graphs() == before == 1


def test_a_thread_with_a_closed_gate_does_not_see_another_s_labels(toy_model):
    model, errors = toy_model(), []
    x = torch.randn(4, 6, dtype=torch.float64)
    model.module.compile(backend="aot_eager")
    with model.gate(THREE):
        model.module(x, THREE)

    def work():
        try:
            model.module(x, THREE)
        except GateError as error:
            errors.append(str(error))

    with model.gate(THREE):
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    assert len(errors) == 1
    assert "closed" in errors[0]


def test_soft_weights_may_break_the_graph_but_are_right(toy_model):
    model = toy_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(model, backend="aot_eager")
    for count in (1, 3):
        weights = torch.rand(4, 3, dtype=torch.float64)
        weights[:, count:] = 0
        assert torch.allclose(compiled(x, weights), model(x, weights), rtol=1e-12, atol=1e-12)


def test_a_graph_break_within_the_model_is_right(toy_model):
    model = toy_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = model(x, THREE)
    model.module.first.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(compiled(x, THREE), expected, rtol=1e-12, atol=1e-12)
    assert graphs() >= 2
    assert not model.gate.is_open()


class ByHand(nn.Module):
    """Opens the gate of a model without label tables inside the compiled region."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        with self.model.gate(y):
            return self.model(x, torch.zeros_like(y))


def by_hand(toy_model):
    return ByHand(toy_model(class_rows=[], label_argument=""))


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_labels_out_of_range_are_an_error_in_a_graph(toy_model, wrong):
    """Where values cannot be looked at, indexing has to refuse them: -1 is not the last class."""
    outer = by_hand(toy_model)
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(outer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x, THREE), outer(x, THREE), rtol=1e-12, atol=1e-12)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        compiled(x, torch.tensor([0, wrong, 1, 1]))
    assert graphs() == 1


def test_rows_that_lack_a_class_are_an_error_in_a_graph(toy_model):
    model = toy_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    rows = model.bank.gather(torch.tensor([0, 1]), 3)
    compiled(x, torch.tensor([0, 1, 0, 3]), rows=rows)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        compiled(x, torch.tensor([0, 2, 0, 3]), rows=rows)


def test_a_closed_or_twice_opened_gate_is_an_error_in_a_graph(toy_model):
    model = toy_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(GateError, match="closed"):
        torch.compile(model.module, backend="aot_eager")(x, THREE)
    with model.gate(THREE), pytest.raises(GateError, match="open already"):
        compiled(x, THREE)
    assert torch.equal(compiled(x, THREE), model(x, THREE))


def test_a_failing_compiled_forward_leaves_the_gate_closed(toy_model):
    model = toy_model()
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(ValueError, match="batch of 3"):
        compiled(x, THREE[:3])
    assert not model.gate.is_open()
    assert torch.allclose(compiled(x, THREE), model(x, THREE), rtol=1e-12, atol=1e-12)


def test_a_compiled_forward_inside_a_checkpoint_is_right(toy_model):
    model = toy_model()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    model(x, THREE).pow(2).sum().backward()
    expected = gradients(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    checkpoint(compiled, x, THREE, use_reentrant=False).pow(2).sum().backward()
    assert_equal(gradients(model), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_the_default_backend_refuses_and_computes_the_same(toy_model):
    outer = by_hand(toy_model)
    x = torch.randn(4, 6, dtype=torch.float64)
    compiled = torch.compile(outer, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x, THREE), outer(x, THREE), rtol=1e-12, atol=1e-12)
        with pytest.raises(RuntimeError, match="out of bounds"):
            compiled(x, torch.tensor([0, -1, 1, 1]))


def test_an_exported_program_follows_its_labels_for_any_batch_and_refuses_others(toy_model):
    model = toy_model().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x, THREE), dynamic_shapes={"args": ({0: batch}, {0: batch})}).module()
    assert not model.gate.is_open()
    for labels in (THREE, torch.tensor([3, 1, 0, 0])):
        assert torch.allclose(program(x, labels), model(x, labels), rtol=1e-12, atol=1e-12)
    assert torch.allclose(program(x[:2], THREE[:2]), model(x[:2], THREE[:2]), rtol=1e-12, atol=1e-12)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        program(x, torch.tensor([0, -1, 1, 1]))


def test_counting_counts():
    """The counters that the tests above read do move."""
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: x + 1, backend=backend, dynamic=False)
    compiled(torch.zeros(2))
    compiled(torch.zeros(3))
    assert graphs() == backend.frame_count == 2
