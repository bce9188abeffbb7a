"""The hand-written product against the composition of torch's own operations, and what it refuses."""

import pytest
import torch

from kindgene.core import linear
from kindgene.core.bank import TailorBank
from kindgene.core.gate import Gate
from kindgene.core.linear import KindLinear
from kindgene.core.product import GatedProduct

LABELS = torch.tensor([2, 3, 0, 0])
SOFT = torch.tensor([[0.5, 0, -1], [0, 0, 0], [1, 1, 1], [0, 2, 0]], dtype=torch.float64)


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_and_bank(ranks=(3,), tailor_ranks=(2,), bias=True, dense=()):
    """A layer of random numbers behind a gate of its own, 5 to 12 features, and a bank of three classes."""
    gate = Gate()
    layer = KindLinear(5, 12, ranks, tailor_ranks, bias=bias, gate=gate, name="layer", dtype=torch.float64)
    bank = TailorBank([0, 1, 2], layer.piece_shapes, {}, torch.float64)
    gate.bind(bank.select)
    with torch.no_grad():
        for seed, value in enumerate((*layer.parameters(), bank.tailors.rows)):
            value.copy_(random(*value.shape, seed=seed))
    if dense:
        layer.keep_dense(dense)
    return layer, bank


def run(layer, bank, labels, x, share=1.0):
    """Output and all gradients."""
    x = x.clone().requires_grad_()
    soft = labels.clone().requires_grad_() if labels.is_floating_point() else labels
    with layer.gate(soft, None, share):
        y = layer(x)
    (y * random(*y.shape, seed=9).to(y.dtype)).sum().backward()
    found = {"y": y.detach(), "x": x.grad, "bank": bank.tailors.rows.grad}
    found |= {name: value.grad for name, value in layer.named_parameters()}
    if labels.is_floating_point():
        found["labels"] = soft.grad
    for value in (*layer.parameters(), bank.tailors.rows):
        value.grad = None
    return found


@pytest.fixture
def composed(monkeypatch):
    """Calls a function with the hand-written product turned off."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(linear, "_takes_fused", lambda x: False)
            return function(*args)

    return call


def assert_same(found, expected, bound=1e-12):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:  # nobody's: a layer that is dense altogether has components, none
            assert found[name] is None or found[name].numel() == 0, name
        else:
            assert found[name].dtype == value.dtype, name
            assert torch.allclose(found[name], value, rtol=bound, atol=bound), name


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize(
    ("ranks", "tailor_ranks", "dense"),
    [
        ((3,), (2,), ()),
        ((3,), (8,), ()),
        ((3,), (17,), (0,)),
        ((3, 1, 2), (1, 9, 2), ()),
        ((3, 1, 2), (2, 2, 2), (1,)),
        ((3, 1, 2), (9, 9, 9), (0, 2)),
    ],
    ids=str,
)
def test_it_is_the_composition(composed, labels, share, ranks, tailor_ranks, dense):
    """Values and gradients, that of the soft weights included."""
    layer, bank = layer_and_bank(ranks, tailor_ranks, dense=dense)
    x = random(4, 3, 5)
    assert_same(run(layer, bank, labels, x, share), composed(run, layer, bank, labels, x, share))


@pytest.mark.parametrize("shape", [(4, 5), (4, 1, 5), (4, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_composition_for_any_input_shape(composed, shape, bias):
    layer, bank = layer_and_bank(bias=bias)
    assert_same(run(layer, bank, LABELS, random(*shape)), composed(run, layer, bank, LABELS, random(*shape)))


def test_its_gradient_is_that_of_finite_differences():
    layer, bank = layer_and_bank((3, 2), (1, 9))

    def call(x, rows, weights):
        bank.tailors.rows.data = rows.data
        with layer.gate(weights):
            return layer(x)

    x, weights = random(4, 2, 5).requires_grad_(), torch.where(SOFT == 0, 0.25, SOFT).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: call(x, bank.tailors.rows, w), (x, weights))


@pytest.mark.parametrize("trained", ["bank", "learngene", "x"])
def test_only_what_is_trained_gets_a_gradient(composed, trained):
    layer, bank = layer_and_bank((3, 2), (1, 9))
    layer.requires_grad_(trained == "learngene")
    bank.requires_grad_(trained == "bank")

    def call():
        x = random(4, 2, 5).requires_grad_(trained == "x")
        with layer.gate(LABELS):
            layer(x).pow(2).sum().backward()
        values = {"x": x, "bank": bank.tailors.rows, **dict(layer.named_parameters())}
        found = {name: value.grad for name, value in values.items()}
        for value in values.values():
            value.grad = None
        return found

    found = call()
    assert_same(found, composed(call))
    assert {name for name, value in found.items() if value is not None} == {
        "bank": {"bank"},
        "x": {"x"},
        "learngene": {"u", "s", "v", "bias"},
    }[trained]


def test_what_is_trained_in_float32_gets_its_gradient_in_float32_under_autocast():
    """Also where backward runs with autocast on, or off."""
    layer, bank = layer_and_bank((3, 2), (1, 9))
    layer.float(), bank.float()
    x = random(4, 2, 5).float()
    expected = run(layer, bank, LABELS, x)
    for outer in (True, False):
        x_leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16), layer.gate(LABELS):
            y = layer(x_leaf)
        assert y.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            (y.float() * random(*y.shape, seed=9).float()).sum().backward()
        for name, value in {"x": x_leaf, "bank": bank.tailors.rows, **dict(layer.named_parameters())}.items():
            assert value.grad.dtype == torch.float32
            assert (value.grad - expected[name]).norm() <= 2e-2 * expected[name].norm(), name
            value.grad = None


def test_a_graph_can_be_walked_twice_and_its_gradient_not_differentiated():
    layer, _ = layer_and_bank()
    x = random(4, 2, 5).requires_grad_()
    with layer.gate(LABELS):
        y = layer(x)
    first = torch.autograd.grad(y.pow(2).sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.pow(2).sum(), x, retain_graph=True)[0], first)
    (again,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()


def test_rows_changed_between_forward_and_backward_are_an_error():
    layer, bank = layer_and_bank()
    with layer.gate(LABELS):
        y = layer(random(4, 2, 5))
    with torch.no_grad():
        bank.tailors.rows.add_(1)
    with pytest.raises(RuntimeError, match="modified inplace"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_it_is_taken_on_a_cpu_and_left_to_compilers_and_transforms(monkeypatch):
    layer, _ = layer_and_bank()
    calls = []
    apply = GatedProduct.apply

    def counted(*args):
        calls.append(1)
        return apply(*args)

    monkeypatch.setattr(GatedProduct, "apply", counted)
    x = random(4, 2, 5)
    with layer.gate(LABELS):
        layer(x)
        assert len(calls) == 1
        gradient = torch.func.grad(lambda x: layer(x).sum())(x)
        torch.compile(layer, backend="eager", fullgraph=True)(x)
        torch.compile(layer, backend="eager")(x)
    assert len(calls) == 1
    assert gradient.shape == x.shape
    torch._dynamo.reset()
