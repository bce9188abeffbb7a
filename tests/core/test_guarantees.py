"""The guarantees of DESIGN section 5 that the core gives, on every backbone of the table, values and gradients.

1 factored == reference == dense twin; 2 no gradient to other classes; 3 split and join; 5 other classes' bits; and 9,
the gate, where nothing is compiled (`test_compile.py` has the rest).
"""

import contextlib
import copy
import math
import threading

import pytest
import torch
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from kindgene.core.gate import GateError
from kindgene.core.pieces import canonical_pieces, join, split
from kindgene.core.reference import model_reference

HARD = torch.tensor([0, 5, 3, 3, 1, 5])
OTHER = torch.tensor([1, 0, 5, 2, 4, 4])
NULL = 5
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
EVERY_DTYPE = pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: str(dtype).removeprefix("torch."))


def soft_weights(dtype=torch.float64):
    """No class, some classes, every class."""
    weights = torch.rand(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 0.2
    weights[0] = 0
    weights[1, 2:] = 0
    weights[2] = torch.tensor([0, 0, 0, 1, 0])
    return weights.to(dtype)


def backward(output):
    """The gradient of a fixed linear function of the output."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (output * direction.to(output.dtype)).sum().backward()


def gradients(module, **more):
    """Takes every gradient off the module (and off the tensors given by name), in float64."""
    values = {**dict(module.named_parameters()), **more}
    found = {name: value.grad.double() for name, value in values.items() if value.grad is not None}
    for value in values.values():
        value.grad = None
    return found


def norm(tensors):
    return torch.stack([value.norm() for value in tensors.values()]).norm()


def assert_close(found, expected, bound):
    """Within the bound, relative to the norm of all that is compared."""
    if isinstance(found, torch.Tensor):
        found, expected = {"output": found.double()}, {"output": expected.double()}
    assert found.keys() == expected.keys()
    assert all(value.isfinite().all() for value in found.values())
    scale = norm(expected)
    assert scale > 0
    for name, value in expected.items():
        assert (found[name] - value).norm() <= bound * scale, name


def assert_equal(found, expected):
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# 1. Factored == reference == dense.


@EVERY_DTYPE
@pytest.mark.parametrize("gate_map", [None, [0, 1, 1, 2, 0]], ids=["own", "shared"])
@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_factored_is_the_reference(backbone, dtype, gate_map, gate):
    model = backbone.model(dtype, gate_map=gate_map)
    labels = HARD if gate == "hard" else soft_weights(dtype).requires_grad_()
    more = {} if gate == "hard" else {"weights": labels}
    x, t = backbone.batch(dtype)
    x.requires_grad_()
    fast = backbone.run(model, (x, t), labels)
    backward(fast)
    found = gradients(model, x=x, **more)

    yardstick, labels, x = model, labels.detach(), x.detach()
    if dtype == torch.bfloat16:
        yardstick, labels, x = model.float(), labels.float() if gate == "soft" else labels, x.float()
    more = {} if gate == "hard" else {"weights": labels.requires_grad_()}
    x.requires_grad_()
    args, kwargs = backbone.arguments(x, t, labels)
    slow = torch.cat([backbone.output(one) for one in model_reference(yardstick, labels, *args, **kwargs)])
    backward(slow)
    expected = gradients(yardstick, x=x, **more)
    assert_close(fast, slow, BOUNDS[dtype])
    untouched = found.keys() - expected.keys()  # what no sample of the reference was made of
    assert not any(found.pop(name).any() for name in untouched)
    assert_close(found, expected, BOUNDS[dtype])


def dense_twin(backbone, model, label):
    """The parameters of the plain backbone that is the model for one class: matrices composed, label rows in place."""
    tailors, labels = model.bank.tailors, model.bank.labels
    weights = dict(model.module.named_parameters())
    tailor_of = model.bank.tailor_of.tolist()
    for name, layer in model.layers.items():
        parts = []
        factors = [weights.pop(f"{name}.{factor}").split(layer.ranks) for factor in "usv"]
        for u, s, v in zip(*factors, strict=True):
            parts.append(torch.einsum("ro,r,ri->oi", u, s, v))
        if label != NULL:
            own = {factor: tailors.views(tailors.rows)[f"{name}.{factor}"][tailor_of[label]] for factor in "usv"}
            factors = [own[factor].split(layer.tailor_ranks) for factor in "usv"]
            for index, (u, s, v) in enumerate(zip(*factors, strict=True)):
                parts[index] = parts[index] + torch.einsum("ro,r,ri->oi", u, s, v)
        weights[f"{name}.weight"] = torch.cat(parts)
    for name in model.label_tables:
        rows = labels.views(labels.rows)[name]
        weights[f"{name}.weight"] = torch.cat([rows, weights.pop(f"{name}.null_row").unsqueeze(0)])
    return weights


@EVERY_DTYPE
@pytest.mark.parametrize("label", [2, 4, NULL])
def test_factored_is_its_dense_twin(backbone, dtype, label):
    model = backbone.model(dtype, gate_map=[0, 1, 1, 2, 0])
    x, t = backbone.batch(dtype)
    labels = torch.full((6,), label)
    fast = backbone.run(model, (x, t), labels)
    backward(fast)
    found = gradients(model)
    yardstick = model.float() if dtype == torch.bfloat16 else model
    yard = torch.float32 if dtype == torch.bfloat16 else dtype
    twin = backbone.dense(2).to(yard).eval()
    args, kwargs = backbone.arguments(x.to(yard), t, labels)
    dense = backbone.output(functional_call(twin, dense_twin(backbone, yardstick, label), args, kwargs))
    backward(dense)
    expected = gradients(yardstick)
    assert_close(fast, dense, BOUNDS[dtype])
    assert not any(found.pop(name).any() for name in found.keys() - expected.keys())
    assert_close(found, expected, BOUNDS[dtype])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_share_of_the_learngene_is_the_model_without_its_other_components(backbone, checkpointing):
    """Which get no gradient; also where layers are recomputed after a forward with another share."""
    model, batch = backbone.model(depth=1).train(), backbone.batch()
    if checkpointing:
        backbone.checkpoint(model)
    found = backbone.run(model, batch, HARD, share=0.5)
    backbone.run(model, batch, HARD)
    backward(found)
    shared = gradients(model)
    with torch.no_grad():
        dropped = {}
        for name, layer in model.layers.items():
            parts = [torch.arange(rank) >= math.ceil(0.5 * rank) for rank in layer.ranks]
            dropped[name] = torch.cat(parts)
            layer.s[dropped[name]] = 0
            layer.u[dropped[name]] = 0
    expected = backbone.run(model, batch, HARD)
    backward(expected)
    assert_close(found, expected, 1e-10)
    wanted = gradients(model)
    for name, rows in dropped.items():
        for factor in "usv":
            assert rows.any()
            assert not shared[f"module.{name}.{factor}"][rows].any()
            wanted[f"module.{name}.{factor}"][rows] = 0
    assert_close(shared, wanted, 1e-10)


# 2. A sample of class c gives exactly zero gradient to every other tailor.


@pytest.mark.parametrize("gate_map", [None, [0, 1, 1, 2, 0]], ids=["own", "shared"])
@pytest.mark.parametrize("label", range(6))
def test_a_sample_moves_its_own_tailor_and_label_row_and_no_other(backbone, label, gate_map):
    model = backbone.model(depth=1, gate_map=gate_map)
    backward(backbone.run(model, backbone.batch(count=2), torch.tensor([label, label])))
    own = {"tailors": label if gate_map is None else [*gate_map, None][label], "labels": label}
    for name, table in model.bank.tables.items():
        for row, gradient in enumerate(table.rows.grad):
            assert bool(gradient.any()) == (label != NULL and row == own[name]), (name, row)


def test_a_soft_weight_of_zero_moves_nothing(backbone):
    model = backbone.model(depth=1)
    weights = torch.tensor([[0.0, 0.5, 0, 0, -1], [0, 0.25, 0, 0, 0]], dtype=torch.float64)
    backward(backbone.run(model, backbone.batch(count=2), weights))
    for table in model.bank.tables.values():
        assert [bool(gradient.any()) for gradient in table.rows.grad] == [False, True, False, False, True]


# 3. Split, then join.


@EVERY_DTYPE
def test_split_then_join_is_bitwise_and_canonical_is_the_same_function(backbone, dtype):
    model, other = backbone.model(dtype), backbone.model(dtype, seed=7)
    batch = backbone.batch(dtype)
    expected = backbone.run(model, batch, HARD)
    assert not torch.equal(backbone.run(other, batch, HARD), expected)
    join(other, split(model))
    assert torch.equal(backbone.run(other, batch, HARD), expected)
    assert_equal(other.state_dict(), model.state_dict())
    ranks = {name: layer.ranks for name, layer in model.layers.items()}
    tailor_ranks = {name: layer.tailor_ranks for name, layer in model.layers.items()}
    join(other, canonical_pieces(split(model), ranks, tailor_ranks))
    if dtype == torch.bfloat16:
        expected = backbone.run(model.float(), tuple(value.float() for value in batch), HARD)
    assert_close(backbone.run(other, batch, HARD), expected, BOUNDS[dtype])


# 5. What is done to one class changes no bit of any other.


@EVERY_DTYPE
@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_more_classes_and_new_tailors_leave_the_others_bitwise_the_same(backbone, dtype, gate):
    """A bank of 300 classes, and tailors of which only those in use are the same."""
    model = backbone.model(dtype, depth=1)
    labels, grown_labels = torch.tensor([0, NULL, 3, 3, 1, NULL]), torch.tensor([0, 300, 3, 3, 1, 300])
    if gate == "soft":
        labels = soft_weights(dtype)
        labels[:, [2, 4]] = 0
        grown_labels = torch.cat([labels, labels.new_zeros(6, 295)], dim=1)
    expected = backbone.run(model, backbone.batch(dtype), labels)
    backward(expected)
    wanted = gradients(model)
    for table in (model.bank.tailors, model.bank.labels):
        more = torch.randn(295, table.rows.shape[1], generator=torch.Generator().manual_seed(4)).to(dtype)
        table.rows = torch.nn.Parameter(torch.cat([table.rows.detach(), more]))
        table.count, table.rows.data[[2, 4]] = 300, 1.0
    model.bank.tailor_of = torch.arange(300)
    assert model.null_class == 300
    found = backbone.run(model, backbone.batch(dtype), grown_labels)
    assert torch.equal(found, expected)
    backward(found)
    grown = gradients(model)
    for name in wanted:
        if name.startswith("bank."):
            assert not grown[name][5:].any()
            grown[name] = grown[name][:5]
    assert_equal(grown, wanted)


@EVERY_DTYPE
@pytest.mark.parametrize("rank", [7, 8, 10])
def test_a_tailor_padded_with_zero_components_is_bitwise_the_same(backbone, dtype, rank):
    """Also where the padding crosses a chunk, and where the learngene's ranks stay unequal."""
    small = backbone.model(dtype, depth=1, tailor_rank=7)
    large = backbone.model(dtype, depth=1, tailor_rank=rank)
    large.module.load_state_dict(small.module.state_dict())
    with torch.no_grad():
        large.bank.tailors.rows.zero_()
        large.bank.labels.rows.copy_(small.bank.labels.rows)
        pieces = [model.bank.tailors.views(model.bank.tailors.rows) for model in (small, large)]
        for name, layer in small.layers.items():
            parts = zip(layer.tailor(pieces[0]), large.layers[name].tailor(pieces[1]), strict=True)
            for components, roomy in parts:
                for factor, room in zip(components, roomy, strict=True):
                    room[:, :7].copy_(factor)
    batch = backbone.batch(dtype)
    assert torch.equal(backbone.run(large, batch, HARD), backbone.run(small, batch, HARD))


@pytest.mark.parametrize("size", [None, 3, 5])
@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_gathered_rows_are_the_bank(backbone, gate, size):
    model = backbone.model(depth=1)
    labels = HARD
    if gate == "soft":
        labels = soft_weights()
        labels[:, [1, 4]] = 0
    batch = backbone.batch()
    expected = backbone.run(model, batch, labels)
    backward(expected)
    wanted = gradients(model)
    rows = model.bank.gather(labels, size)
    found = backbone.run(model, batch, labels, rows)
    assert torch.equal(found, expected)
    backward(found)
    shared = gradients(model)
    for name in model.bank.tables:
        table = getattr(rows, name)
        gradient = torch.zeros_like(wanted[f"bank.{name}.rows"])
        gradient[table.present] = table.values.grad[: table.count]
        assert not table.values.grad[table.count :].any()
        shared[f"bank.{name}.rows"] = gradient
    assert_equal(shared, wanted)


def test_rows_that_lack_a_class_are_an_error_and_leave_the_gate_closed(backbone):
    model = backbone.model(depth=1)
    rows = model.bank.gather(torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match=r"rows= hold \[0, 1\] but this batch needs \[3\]"):
        backbone.run(model, backbone.batch(), HARD, rows)
    assert not model.gate.is_open()


# 9. The gate: right or an error, never silently wrong.


@pytest.mark.parametrize("where", ["this thread", "another thread"])
def test_checkpointing_and_two_forwards_before_one_backward(backbone, where):
    """Recomputed layers find their own forward's labels, whatever forward came last and whichever thread asks."""
    model, batch = backbone.model().train(), backbone.batch()
    backward(backbone.run(model, batch, HARD))
    backward(backbone.run(model, batch, OTHER))
    expected = gradients(model)
    backbone.checkpoint(model)
    calls = count_calls(model)
    first, second = (backbone.run(model, batch, labels) for labels in (HARD, OTHER))
    both = torch.stack([first, second])
    loss = (both * direction_of(first)).sum()
    assert len(calls) == 2
    in_thread(loss.backward) if where == "another thread" else loss.backward()
    assert len(calls) == 4  # recomputed, so this was a test
    assert_close(gradients(model), expected, 1e-14)
    assert not model.gate.is_open()


def direction_of(output):
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def count_calls(model):
    """A list that grows by one with every call of the first gated layer."""
    calls = []
    next(iter(model.layers.values())).register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def in_thread(*functions):
    """Runs every function in a thread of its own, all at once; an exception in one is raised here."""
    errors = []

    def guard(function):
        try:
            function()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    workers = [threading.Thread(target=guard, args=[function]) for function in functions]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def test_a_checkpointed_graph_can_be_walked_twice(backbone):
    model = backbone.model(depth=1).train()
    backbone.checkpoint(model)
    output = backbone.run(model, backbone.batch(), HARD)
    output.pow(2).sum().backward(retain_graph=True)
    first = gradients(model)
    output.pow(2).sum().backward()
    assert_equal(gradients(model), first)


def test_a_checkpoint_around_the_whole_model_is_right_too(backbone):
    model, batch = backbone.model(depth=1), backbone.batch()
    backward(backbone.run(model, batch, HARD))
    expected = gradients(model)
    output = checkpoint(lambda x: backbone.run(model, (x, batch[1]), HARD), batch[0], use_reentrant=False)
    with model.gate(OTHER):
        backward(output)
    assert_equal(gradients(model), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open for other labels"])
def test_a_checkpoint_that_does_not_know_the_gate_raises(backbone, reentrant, opened):
    model = backbone.model(depth=1).train()

    def forgetful(function, *args):
        return checkpoint(function, *args, use_reentrant=reentrant)

    model.module._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=forgetful)
    loss = backbone.run(model, backbone.batch(), HARD).sum()
    around = model.gate(OTHER) if opened else contextlib.nullcontext()
    with around, pytest.raises(GateError, match="recomputed in backward without the labels"):
        loss.backward()
    assert not model.gate.is_open()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_autocast_is_the_float32_model_within_bfloat16(backbone, checkpointing):
    model, batch = backbone.model(torch.float32).train(), backbone.batch(torch.float32)
    expected = backbone.run(model, batch, HARD)
    backward(expected)
    wanted = gradients(model)
    if checkpointing:
        backbone.checkpoint(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone.run(model, batch, HARD)
    assert not torch.equal(found.float(), expected)
    backward(found)
    assert_close(found, expected, 2e-2)
    assert_close(gradients(model), wanted, 2e-2)


def test_two_threads_run_one_model_at_once(backbone):
    model, batch = backbone.model(depth=1), backbone.batch()
    expected = [backbone.run(model, batch, labels) for labels in (HARD, OTHER)]
    barrier = threading.Barrier(2, timeout=60)

    def meet(*_):
        barrier.wait()

    layers = list(model.layers.values())
    for layer in layers:
        layer.register_forward_pre_hook(meet)  # neither goes on before both are inside the same layer
    found = [None, None]

    def work(index, labels):
        found[index] = backbone.run(model, batch, labels)

    in_thread(lambda: work(0, HARD), lambda: work(1, OTHER))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_thread_has_no_part_in_what_another_has_opened(backbone):
    model, batch = backbone.model(depth=1), backbone.batch()
    args, kwargs = backbone.arguments(*batch, HARD)
    with model.gate(HARD), pytest.raises(GateError, match="closed"):
        in_thread(lambda: model.module(*args, **kwargs))


def test_two_models_in_turn_and_one_within_the_other(backbone):
    model, other = backbone.model(depth=1), backbone.model(depth=1, seed=7)
    batch = backbone.batch()
    backward(backbone.run(model, batch, HARD))
    backward(backbone.run(other, batch, OTHER))
    expected = {**gradients(model), **{f"other.{name}": value for name, value in gradients(other).items()}}
    inner = []
    block = getattr(model.module, backbone.blocks)[0]
    block.register_forward_pre_hook(lambda *_: inner.append(backbone.run(other, batch, OTHER)))
    outer = backbone.run(model, batch, HARD)
    backward(outer)
    backward(inner[0])
    found = {**gradients(model), **{f"other.{name}": value for name, value in gradients(other).items()}}
    assert_equal(found, expected)


def test_an_exception_inside_a_forward_leaves_the_gate_closed(backbone):
    model, batch = backbone.model(depth=1), backbone.batch()
    expected = backbone.run(model, batch, HARD)

    def fail(*_):
        raise KeyError("in the middle")

    handle = getattr(model.module, backbone.blocks)[0].register_forward_hook(fail)
    with pytest.raises(KeyError, match="in the middle"):
        backbone.run(model, batch, HARD)
    assert not model.gate.is_open()
    handle.remove()
    assert torch.equal(backbone.run(model, batch, HARD), expected)


def test_the_module_by_itself_is_refused(backbone):
    model = backbone.model(depth=1)
    args, kwargs = backbone.arguments(*backbone.batch(), HARD)
    with pytest.raises(GateError, match=r"reached with the class gate closed.*with model.gate\(y\)"):
        model.module(*args, **kwargs)
    assert backbone.run(model, backbone.batch(), HARD).isfinite().all()


def test_a_gate_within_the_same_gate_is_refused(backbone):
    model = backbone.model(depth=1)
    with model.gate(HARD):
        with pytest.raises(GateError, match="open already"):
            backbone.run(model, backbone.batch(), OTHER)
        args, kwargs = backbone.arguments(*backbone.batch(), HARD)
        by_hand = backbone.output(model.module(*args, **kwargs))  # and the outer one is still as it was
    assert torch.equal(by_hand, backbone.run(model, backbone.batch(), HARD))


def test_labels_of_another_batch_size_are_refused(backbone):
    model = backbone.model(depth=1)
    x, t = backbone.batch()
    told = "labels are for a batch of 5, but the batch is of 6"
    by_the_layer = r"layer layers\.0\.attention\.\w+: the leading dimension .* is 6, .* batch of 5"
    with pytest.raises(ValueError, match=told if backbone.labelled else by_the_layer):
        backbone.run(model, (x, t), HARD[:5])
    assert not model.gate.is_open()


# Copies.


def test_a_deep_copy_is_a_model_of_its_own(backbone):
    model, batch = backbone.model(depth=1), backbone.batch()
    with model.gate(OTHER):
        twin = copy.deepcopy(model)
    assert not twin.gate.is_open()
    assert all(layer.gate is twin.gate for layer in twin.layers.values())
    expected = backbone.run(model, batch, HARD)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert torch.equal(backbone.run(twin, batch, HARD), expected)


def test_a_state_dict_is_all_there_is_to_a_model(backbone):
    model, other, batch = backbone.model(depth=1), backbone.model(depth=1, seed=7), backbone.batch()
    assert all(type(value) is torch.Tensor for value in model.state_dict().values())
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(backbone.run(other, batch, HARD), backbone.run(model, batch, HARD))


def test_a_new_row_of_the_table_gets_every_test_here(backbone):
    """Nothing above may be skipped by a row that decomposes nothing, or never takes the paths that are special."""
    model = backbone.model()
    assert model.layers
    assert any(max(layer.tailor_ranks) > 8 for layer in model.layers.values())
    assert bool(model.label_argument) == backbone.labelled
