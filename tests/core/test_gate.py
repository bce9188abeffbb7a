"""The gate by itself: open, closed, remembered over a recomputation, and never guessed."""

import copy
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kindgene.core.gate import Gate, GateError, Selection


def selection(batch=2):
    index = torch.zeros(batch, 1, dtype=torch.long)
    return Selection({}, {}, index, index, torch.ones(batch, 1))


def test_a_gate_is_open_for_as_long_as_it_is_entered():
    gate, chosen = Gate(), selection()
    assert not gate.is_open()
    with gate.opened(chosen):
        assert gate.is_open()
        assert gate.current("layer") is chosen
    assert not gate.is_open()


def test_a_selection_knows_its_batch():
    assert selection(3).batch == 3


def test_a_closed_gate_names_the_layer_and_the_way_out():
    with pytest.raises(GateError, match=r"^layer blocks\.0\.q was reached with the class gate closed\. .*model\.gate"):
        Gate().current("blocks.0.q")


def test_opening_twice_is_refused_and_the_first_stays():
    gate, first = Gate(), selection()
    with gate.opened(first):
        with pytest.raises(GateError, match="open already"), gate.opened(selection()):
            pass
        assert gate.current("layer") is first
    assert not gate.is_open()


def test_an_exception_closes_the_gate():
    gate = Gate()
    with pytest.raises(KeyError), gate.opened(selection()):
        raise KeyError
    assert not gate.is_open()
    with gate.opened(selection()):
        assert gate.is_open()


def test_labels_become_a_selection_through_what_the_gate_was_bound_to():
    gate, asked = Gate(), []

    def select(labels, rows, share):
        asked.append((labels, rows, share))
        return selection()

    with pytest.raises(AssertionError, match="never bound"):
        gate(torch.tensor([0]))
    gate.bind(select)
    labels = torch.tensor([0, 1])
    with gate(labels):
        assert gate.is_open()
    with gate(labels, "rows", 0.5):
        assert gate.is_open()
    assert asked == [(labels, None, 1.0), (labels, "rows", 0.5)]


def test_each_thread_has_its_own():
    gate, mine, theirs, seen = Gate(), selection(), selection(), []

    def work():
        seen.append(gate.is_open())
        with gate.opened(theirs):
            seen.append(gate.current("layer"))

    with gate.opened(mine):
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        assert gate.current("layer") is mine
    assert seen == [False, theirs]


def test_a_copy_starts_closed():
    gate = Gate()
    gate.bind(max)
    with gate.opened(selection()):
        twin = copy.deepcopy(gate)
        assert not twin.is_open()
    assert twin.__getstate__() == {"select": max}


# Recomputation. A layer is stood in for by a function that multiplies by a number its selection holds.


def scaled(value):
    return Selection({}, {}, torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), torch.tensor([[float(value)]]))


def layer(gate, x):
    return (x * gate.current("layer").weight).square().sum()  # squared: its backward needs the product again


def gradient_of(value):
    """d/dx (x v)^2 at x = 3."""
    return 2 * 3.0 * value * value


@pytest.fixture
def x():
    return torch.tensor([3.0], requires_grad=True)


def test_a_recomputation_sees_the_selection_of_its_own_forward(x):
    gate = Gate()
    with gate.opened(scaled(2)):
        first = gate.checkpoint(layer, gate, x)
    with gate.opened(scaled(5)):
        second = checkpoint(layer, gate, x, use_reentrant=False, context_fn=gate.checkpoint_contexts)
    (first + second).backward()
    assert x.grad.item() == gradient_of(2) + gradient_of(5)
    assert not gate.is_open()


def test_also_while_the_gate_is_open_for_other_labels(x):
    gate = Gate()
    with gate.opened(scaled(2)):
        loss = gate.checkpoint(layer, gate, x)
    with gate.opened(scaled(5)):
        loss.backward()
        assert gate.current("layer").weight.item() == 5
    assert x.grad.item() == gradient_of(2)


def test_also_in_another_thread_and_in_every_backward_pass(x):
    gate = Gate()
    with gate.opened(scaled(2)):
        loss = gate.checkpoint(layer, gate, x)
    worker = threading.Thread(target=lambda: loss.backward(retain_graph=True))
    worker.start()
    worker.join()
    loss.backward()
    assert x.grad.item() == 2 * gradient_of(2)


def test_a_checkpoint_within_a_checkpoint(x):
    gate = Gate()
    with gate.opened(scaled(2)):
        loss = gate.checkpoint(lambda x: gate.checkpoint(layer, gate, x) + layer(gate, x), x)
    loss.backward()
    assert x.grad.item() == 2 * gradient_of(2)


def test_a_gradient_taken_inside_a_forward(x):
    gate = Gate()
    with gate.opened(scaled(2)):
        inner = gate.checkpoint(layer, gate, x)
        (gradient,) = torch.autograd.grad(inner, x)
        assert gate.current("layer").weight.item() == 2
    assert gradient.item() == gradient_of(2)


def test_a_recomputation_that_fails_leaves_the_gate_closed(x):
    gate, calls = Gate(), []

    def fragile(x):
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("again")
        return layer(gate, x)

    with gate.opened(scaled(2)):
        loss = gate.checkpoint(fragile, x)
    with pytest.raises(KeyError, match="again"):
        loss.backward()
    assert not gate.is_open()
    with gate.opened(scaled(5)):
        assert gate.current("layer").weight.item() == 5


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_without_the_gate_raises_and_says_what_to_do(x, reentrant):
    gate = Gate()
    with gate.opened(scaled(2)):
        loss = checkpoint(layer, gate, x, use_reentrant=reentrant)
    told = r"^layer layer is being recomputed in backward without the labels of its forward\. .*checkpoint_contexts"
    with pytest.raises(GateError, match=told):
        loss.backward()
    with gate.opened(scaled(2)):  # even the right labels: nobody can know that they are
        loss = checkpoint(layer, gate, x, use_reentrant=reentrant)
        with pytest.raises(GateError, match=told):
            loss.backward()
    assert x.grad is None


def test_a_checkpoint_needs_an_open_gate(x):
    with pytest.raises(GateError, match="layer a checkpointed function was reached with the class gate closed"):
        Gate().checkpoint(lambda x: x, x)
