"""Guarantees 1, 2, 3 and 9 on our DiT, against the slow reference."""

import copy
import threading

import pytest
import torch

from kindgene.core.components import Components, canonical, compose
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.gate import GateError
from kindgene.core.pieces import canonical_pieces, join, split
from kindgene.core.reference import model_reference
from kindgene.models.dit import DiT


def build(dtype=torch.float64, **options):
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", num_classes=5)
    for value in dense.parameters():
        if value.abs().sum() == 0:
            torch.nn.init.normal_(value, std=0.1)
    dense = torch.nn.Module.to(dense, dtype)
    settings = {"num_classes": 5, "learngene_rank": 6, "tailor_rank": 2, "targets": "paper+adaln", **options}
    return make_decomposable(dense, KindConfig(**settings))


def batch(dtype=torch.float64, count=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.arange(count) * 100, torch.tensor([0, 5, 3, 3, 1, 5])[:count]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("gate_map", [None, [0, 1, 1, 2, 0]])
@pytest.mark.parametrize("soft", [False, True])
def test_values_and_gradients_are_the_reference_s(dtype, bound, gate_map, soft):
    model = build(dtype, gate_map=gate_map)
    x, t, y = batch(dtype)
    if soft:
        y = torch.rand(6, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
        y[0] = 0
        y[1, 2:] = 0
    fast = model(x, t, y)
    fast.pow(2).sum().backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    slow = torch.cat(model_reference(model, y, x, t, y))
    slow.pow(2).sum().backward()
    assert (fast - slow).norm() <= bound * slow.norm()
    for name, value in model.named_parameters():
        if value.grad is not None:
            assert (found[name] - value.grad).norm() <= 10 * bound * value.grad.norm() + bound, name


def test_a_sample_gives_no_gradient_to_other_classes():
    model = build()
    x, t, _ = batch(count=1)
    model(x, t, torch.tensor([2])).pow(2).sum().backward()
    for table in model.bank.tables.values():
        norms = table.rows.grad.abs().sum(1)
        assert norms[2] > 0
        assert torch.equal(norms[[0, 1, 3, 4]], torch.zeros(4, dtype=norms.dtype))
    model.zero_grad()
    model(x, t, torch.tensor([5])).pow(2).sum().backward()
    assert not any(table.rows.grad.any() for table in model.bank.tables.values())


def test_split_and_join_are_inverse_bit_for_bit_and_canonical_keeps_the_function():
    model = build()
    x, t, y = batch()
    other = build()
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
    join(other, split(model))
    assert torch.equal(other(x, t, y), model(x, t, y))
    ranks = {name: layer.ranks for name, layer in model.layers.items()}
    tailor_ranks = {name: layer.tailor_ranks for name, layer in model.layers.items()}
    join(other, canonical_pieces(split(model), ranks, tailor_ranks))
    assert (other(x, t, y) - model(x, t, y)).norm() <= 1e-10 * model(x, t, y).norm()


def test_canonical_form_is_orthonormal_descending_and_best_at_every_rank():
    generator = torch.Generator().manual_seed(3)
    u, s, v = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 9), (4,), (4, 7)))
    form = canonical(Components(u, s, v))
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(form.u @ form.u.mT, eye)
    assert torch.allclose(form.v @ form.v.mT, eye)
    assert torch.allclose(form.s, torch.linalg.svdvals(compose(Components(u, s, v)))[:4])
    assert torch.allclose(compose(form), compose(Components(u, s, v)))


def test_gathered_rows_give_the_same_and_a_missing_class_is_an_error():
    model = build()
    x, t, y = batch()
    assert torch.equal(model(x, t, y, rows=model.bank.gather(y)), model(x, t, y))
    with pytest.raises((IndexError, ValueError)):
        model(x, t, y, rows=model.bank.gather(torch.tensor([0, 0, 1, 1, 5, 5])))


def test_checkpointing_two_forwards_and_backward_in_another_thread():
    plain, saving = build(), build()
    saving.load_state_dict(plain.state_dict())
    saving.enable_gradient_checkpointing()
    x, t, y = batch()
    z = torch.tensor([1, 0, 5, 2, 4, 4])
    for model in (plain, saving):
        loss = model(x, t, y).pow(2).sum() + model(x, t, z).pow(2).sum()
        worker = threading.Thread(target=loss.backward)
        worker.start()
        worker.join()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is None or torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_that_does_not_know_the_gate_raises(reentrant):
    model = build()
    call = torch.utils.checkpoint.checkpoint
    model.module.enable_gradient_checkpointing(lambda f, *args: call(f, *args, use_reentrant=reentrant))
    x, t, y = batch()
    loss = model(x, t, y).pow(2).sum()
    with model.gate(torch.tensor([1, 1, 1, 1, 1, 1])), pytest.raises(GateError, match="recomputed in backward"):
        loss.backward()


def test_two_threads_sample_one_model_at_the_same_time():
    model = build()
    x, t, y = batch()
    z = torch.tensor([4, 4, 0, 5, 2, 2])
    expected = [model(x, t, y).detach(), model(x, t, z).detach()]
    barrier = threading.Barrier(2, timeout=20)
    handle = model.module.blocks[0].register_forward_hook(lambda *args: barrier.wait() and None)
    found = [None, None]

    def work(index, labels):
        found[index] = model(x, t, labels).detach()

    workers = [threading.Thread(target=work, args=pair) for pair in ((0, y), (1, z))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    handle.remove()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_closed_gate_nested_labels_and_copies():
    model = build()
    x, t, y = batch()
    with pytest.raises(GateError, match="closed"):
        model.module(x, t, y)
    with model.gate(y), pytest.raises(GateError, match="open already"):
        model(x, t, y)
    assert torch.equal(copy.deepcopy(model)(x, t, y), model(x, t, y))
    with pytest.raises(ValueError, match="leading dimension"):
        model(x[:5], t[:5], y)


@pytest.mark.parametrize(
    "labels", [torch.tensor([9]), torch.tensor([-1]), torch.tensor([True]), torch.zeros(1, 3), torch.zeros(0).long()]
)
def test_impossible_labels_are_refused(labels):
    with pytest.raises(ValueError, match=r"label|weights"):
        build().bank.select(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learngene_rank": 0}, "at least 1"),
        ({"tailor_rank": -1}, "at least 1"),
        ({"learngene_rank": 999}, "more than"),
        ({"targets": ["nothing.*"]}, "matches nothing; there is"),
        ({"targets": ["x_embedder.proj"]}, "exactly nn.Linear"),
        ({"num_classes": 3}, "label table"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_loaded_weights_are_not_thrown_away_and_svd_keeps_them():
    dense = DiT.from_preset("tiny/2", num_classes=5)
    dense.load_state_dict(copy.deepcopy(dense.state_dict()))
    with pytest.raises(ValueError, match="were loaded"):
        make_decomposable(dense, KindConfig(num_classes=5, learngene_rank=4, tailor_rank=2))
    torch.nn.init.normal_(dense.final_layer.linear.weight, std=0.1)
    x, t, y = batch(torch.float32)
    expected = dense(x, t, y).detach()
    model = make_decomposable(dense, KindConfig(num_classes=5, learngene_rank=32, tailor_rank=2, init="svd"))
    assert (model(x, t, y) - expected).norm() <= 1e-5 * expected.norm()
