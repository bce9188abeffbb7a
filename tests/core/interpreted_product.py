"""The kernels in Triton's interpreter, run by test_product_triton.py in a process of its own (TRITON_INTERPRET=1)."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kindgene.core import linear, product_triton
from kindgene.core.product import GatedProduct, Ranks
from kindgene.core.reference import model_reference

NULL = -1


def random(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(tokens, inputs, outputs, ranks, own_ranks, gates, classes, dtype=torch.float32):
    """Arguments of `gated_product`; `gates` holds each sample's tailors, NULL for a closed one."""
    components, own = sum(ranks), sum(own_ranks)
    index = torch.tensor(gates)
    sizes = [own * inputs, own, own * outputs]
    bank = random(classes, sum(sizes), seed=6) * 0.5
    amount = torch.where(index == NULL, 0.0, 1 + 0.3 * random(*index.shape, seed=7)).to(dtype)
    x = random(len(gates), tokens, inputs, dtype=dtype)
    v, u = random(components, inputs, seed=2, dtype=dtype), random(components, outputs, seed=3, dtype=dtype)
    s, bias = random(components, seed=4, dtype=dtype), random(len(ranks) * outputs, seed=5, dtype=dtype)
    leaves = [value.requires_grad_() for value in (x, v, s, u, bias, bank, amount)]
    return leaves, index.clamp(min=0), sizes, tuple(ranks), tuple(own_ranks)


def run(arguments, kernels):
    """Output and gradients of all leaves."""
    (x, v, s, u, bias, bank, amount), index, sizes, ranks, own_ranks = arguments
    tailor_v, tailor_s, tailor_u = bank.split(sizes, 1)  # views with the bank's row stride, as layers have them
    tailor_v, tailor_u = (piece.unflatten(1, (sum(own_ranks), -1)) for piece in (tailor_v, tailor_u))
    if kernels:
        y = product_triton.gated_product(
            *(x, v, s, u, bias, tailor_v, tailor_s, tailor_u, amount, index, ranks, own_ranks)
        )
    else:
        y = GatedProduct.apply(
            *(x, v, s, u, None, bias, tailor_v, tailor_s, tailor_u, amount, index.flatten(), Ranks(ranks, own_ranks))
        )
    gy = random(*y.shape, seed=9, dtype=y.dtype)
    names = ("x", "v", "s", "u", "bias", "bank", "amount")
    return {"y": y.detach(), **dict(zip(names, torch.autograd.grad(y, arguments[0], gy), strict=True))}


def assert_near(found, expected, bound):
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert (found[name] - value).double().norm() <= bound * (value.double().norm() + 1e-6), name


@st.composite
def cases(draw):
    parts = draw(st.integers(1, 2))
    classes, most = draw(st.integers(1, 6)), draw(st.integers(1, 2))
    gate = st.lists(st.integers(NULL, classes - 1), min_size=most, max_size=most)
    rank = st.integers(1, 9) if parts > 1 else st.sampled_from([1, 3, 16, 35])
    return {
        "tokens": draw(st.sampled_from([1, 5, 16, 18])),
        "inputs": draw(st.sampled_from([7, 24, 70])),
        "outputs": draw(st.sampled_from([5, 40])),
        "ranks": draw(st.lists(rank, min_size=parts, max_size=parts)),
        "own_ranks": draw(st.lists(st.sampled_from([1, 3, 4, 17]), min_size=parts, max_size=parts)),
        "gates": draw(st.lists(gate, min_size=1, max_size=4)),
        "classes": classes,
    }


LAYER = {"tokens": 17, "inputs": 24, "outputs": 40, "ranks": [5], "own_ranks": [3], "classes": 3}


@settings(max_examples=5)
@given(cases())
@example({**LAYER, "gates": [[0], [0], [0]]})  # one class
@example({**LAYER, "gates": [[NULL], [NULL]]})  # null alone
@example({**LAYER, "gates": [[n] for n in range(12)], "classes": 40, "tokens": 2})  # many classes, most of them absent
@example({**LAYER, "gates": [[2], [NULL], [0]], "tokens": 70, "ranks": [2, 3, 1], "own_ranks": [1, 4, 2]})
def test_it_is_the_product_on_a_cpu(shape):
    """Values and all gradients, that of the amounts where a gate is open (a closed one has none)."""
    arguments = case(**shape)
    found, expected = run(arguments, kernels=True), run(arguments, kernels=False)
    expected["amount"] = torch.where(arguments[0][-1] != 0, expected["amount"], 0)
    assert_near(found, expected, 2e-5)


def test_sixteen_bits_are_near_float32():
    """The interpreter multiplies bfloat16 as if its bits were whole numbers: float16 stands for both."""
    shape = {**LAYER, "gates": [[2], [NULL], [0], [2]], "ranks": [20]}
    expected = run(case(**shape), kernels=False)
    found = run(case(**shape, dtype=torch.float16), kernels=True)
    assert found["y"].dtype == torch.float16
    assert found["bank"].dtype == torch.float32  # summed in float32 and kept in the bank's own
    expected["amount"] = torch.where(torch.tensor(shape["gates"]) != NULL, expected["amount"], 0)
    assert_near({name: value.to(expected[name].dtype) for name, value in found.items()}, expected, 5e-3)


def test_a_closed_gate_reads_no_tailor_and_an_absent_class_gets_exactly_no_gradient():
    arguments = case(**LAYER, gates=[[NULL], [1]])
    with torch.no_grad():
        arguments[0][5][0] = float("nan")  # of the tailor that stands in for the closed one
    found = run(arguments, kernels=True)
    assert found["y"].isfinite().all()
    assert found["x"].isfinite().all()
    assert not found["bank"][0, :-1].nan_to_num(1.0)[: LAYER["inputs"]].any()
    assert not found["bank"][2].any()
    assert found["bank"][1].any()


def test_zero_components_and_further_classes_change_no_bit():
    def outputs(own_rank, classes):
        arguments = case(**{**LAYER, "own_ranks": [own_rank], "classes": classes}, gates=[[0], [1], [NULL]])
        (x, v, s, u, bias, *_), index, _, ranks, _ = arguments
        tailor = [torch.zeros(classes, own_rank, size) for size in (24, 1, 40)]
        for seed, piece in enumerate(tailor):
            piece[:2, :3] = random(2, 3, piece.shape[2], seed=20 + seed)
        own_v, own_s, own_u = tailor
        amount = torch.tensor([[1.0], [1.0], [0.0]])
        return product_triton.gated_product(
            *(x, v, s, u, bias, own_v, own_s[..., 0], own_u, amount, index, ranks, (own_rank,))
        )

    expected = outputs(3, 2)
    assert torch.equal(outputs(21, 2), expected)
    assert torch.equal(outputs(3, 9), expected)


def test_only_what_is_trained_gets_a_gradient():
    """The gradient of x is not computed where x is an input; that of the tailors not where they are frozen."""
    arguments = case(**LAYER, gates=[[2], [NULL], [0]])
    everything = run(arguments, kernels=True)
    names = ("x", "v", "s", "u", "bias", "bank", "amount")
    for trained in (("bank",), ("v", "s", "u", "bias"), ("x",)):
        leaves, *rest = case(**LAYER, gates=[[2], [NULL], [0]])
        kept = [leaf.detach().requires_grad_(name in trained) for name, leaf in zip(names, leaves, strict=True)]
        (x, v, s, u, bias, bank, amount), (index, sizes, ranks, own) = kept, rest
        tailor_v, tailor_s, tailor_u = bank.split(sizes, 1)
        tailor_v, tailor_u = (piece.unflatten(1, (sum(own), -1)) for piece in (tailor_v, tailor_u))
        y = product_triton.gated_product(x, v, s, u, bias, tailor_v, tailor_s, tailor_u, amount, index, ranks, own)
        y.backward(random(*y.shape, seed=9))
        for name, leaf in zip(names, kept, strict=True):
            assert (leaf.grad is not None) == (name in trained), name
            assert leaf.grad is None or torch.equal(leaf.grad, everything[name]), name


def test_its_gradient_is_not_differentiated():
    (x, v, s, u, bias, bank, amount), index, sizes, ranks, own = case(**LAYER, gates=[[2], [NULL]])
    own_v, own_s, own_u = (piece.detach() for piece in bank.split(sizes, 1))
    own_v, own_u = (piece.unflatten(1, (sum(own), -1)) for piece in (own_v, own_u))
    y = product_triton.gated_product(x, v, s, u, bias, own_v, own_s, own_u, amount.detach(), index, ranks, own)
    (again,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()


@pytest.mark.parametrize("labels", [[0, 5, 3, 3, 1, 5], [5] * 6], ids=["mixed", "null"])
def test_a_model_is_its_reference(dit, monkeypatch, labels):
    """A whole model behind its gate, q, k and v in one matrix, through the layer's own dispatch."""
    model, batch, labels = dit.model(torch.float32, depth=1), dit.batch(torch.float32), torch.tensor(labels)
    monkeypatch.setattr(linear, "_takes_fused", lambda x: False)
    monkeypatch.setattr(linear, "_takes_kernels", lambda x: True)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}

    def gradients(output):
        loss = (output * random(*output.shape, seed=9)).sum()
        return torch.autograd.grad(loss, parameters.values(), materialize_grads=True)

    found = dit.run(model, batch, labels)
    args, kwargs = dit.arguments(*batch, labels)
    expected = torch.cat([dit.output(one) for one in model_reference(model, labels, *args, **kwargs)])
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    wanted = gradients(expected)
    scale = torch.stack([value.norm() for value in wanted]).norm()
    for name, value, want in zip(parameters, gradients(found), wanted, strict=True):
        assert (value - want).norm() <= 1e-5 * scale, name


def test_they_are_taken_for_sixteen_bits_and_enough_tokens():
    assert product_triton.takes(torch.zeros(2, 16, 3, dtype=torch.bfloat16))
    assert product_triton.takes(torch.zeros(2, 16, 3, dtype=torch.float16))
    assert not product_triton.takes(torch.zeros(2, 15, 3, dtype=torch.bfloat16))
    assert not product_triton.takes(torch.zeros(2, 16, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert product_triton.takes(torch.zeros(2, 16, 3))
        assert not product_triton.takes(torch.zeros(2, 16, 3, dtype=torch.float64))
