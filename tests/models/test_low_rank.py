"""Linear layers as thin pairs: the function of the product, checked descriptions, nothing half-replaced."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kindgene.models.low_rank import LinearParts, install_low_rank


def small_model(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 24, bias=bias), nn.GELU())
    return nn.ModuleDict({"first": inner, "last": nn.Linear(24, 6, bias=bias), "norm": nn.LayerNorm(6)})


@settings(deadline=None, max_examples=30)
@given(
    parts=st.sampled_from([1, 2, 3, 4]),
    data=st.data(),
    bias=st.booleans(),
    batch=st.sampled_from([(5,), (2, 3)]),
)
def test_the_replacement_computes_the_product_of_its_parts(parts, data, bias, batch):
    rank = st.none() | st.integers(1, min(8, 24 // parts))
    ranks = data.draw(st.lists(rank, min_size=parts, max_size=parts))
    model = small_model(bias).double()
    dense = model["first"][0]
    install_low_rank(model, {"first.0": ranks})
    new = model["first"][0]
    if ranks == [None]:
        assert new is dense
        return

    rows, biases = [], []
    for part, rank in zip(new.parts if parts > 1 else [new], ranks, strict=True):
        last = part if rank is None else part[1]
        rows.append(part.weight if rank is None else part[1].weight @ part[0].weight)
        biases.append(last.bias if bias else torch.zeros(24 // parts, dtype=torch.float64))
        assert rank is None or tuple(part[0].weight.shape) == (rank, 8)
    x = torch.randn(*batch, 8, dtype=torch.float64)
    torch.testing.assert_close(new(x), x @ torch.cat(rows).T + torch.cat(biases), rtol=1e-12, atol=1e-12)


def test_keys_of_a_pair_and_of_parts():
    model = small_model()
    install_low_rank(model, {"first.0": [4, 4, None], "last": [2]})
    assert [key for key in model.state_dict() if not key.startswith("norm")] == [
        "first.0.parts.0.0.weight",
        "first.0.parts.0.1.weight",
        "first.0.parts.0.1.bias",
        "first.0.parts.1.0.weight",
        "first.0.parts.1.1.weight",
        "first.0.parts.1.1.bias",
        "first.0.parts.2.weight",
        "first.0.parts.2.bias",
        "last.0.weight",
        "last.1.weight",
        "last.1.bias",
    ]
    assert isinstance(model["first"][0], LinearParts)


def test_without_bias_there_is_none_after():
    model = small_model(bias=False)
    install_low_rank(model, {"first.0": [4, None, 2], "last": [2]})
    assert not [key for key in model.state_dict() if key.endswith("bias") and not key.startswith("norm")]


def test_variance_bias_and_zero_are_kept():
    torch.manual_seed(0)
    model = nn.ModuleDict({"wide": nn.Linear(256, 512), "zero": nn.Linear(256, 512)})
    nn.init.zeros_(model["zero"].weight)
    before, bias = model["wide"].weight.detach().clone(), model["wide"].bias.detach().clone()
    install_low_rank(model, {"wide": [32], "zero": [32]})
    product = model["wide"][1].weight @ model["wide"][0].weight
    assert product.std().item() == pytest.approx(before.std().item(), rel=0.1)
    assert torch.equal(model["wide"][1].bias, bias)

    # Exactly zero, and still able to learn.
    x = torch.randn(4, 256)
    assert torch.equal(model["zero"](x), model["zero"][1].bias.expand(4, -1))
    model["zero"](x).square().sum().backward()
    assert model["zero"][1].weight.grad.abs().max() > 0


def test_dtype_device_and_mode_follow_the_layer_replaced():
    model = nn.ModuleDict({"one": nn.Linear(8, 8, device="meta", dtype=torch.bfloat16)}).eval()
    install_low_rank(model, {"one": [2]})
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("meta", torch.bfloat16)}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"frist.0": [2]}, r"'frist.0', which is no nn.Linear here; near it: first.0"),
        ({"norm": [2]}, "no nn.Linear"),
        ({"": [2]}, "no nn.Linear"),
        ({"last": [0]}, r"rank 0; a rank is a whole number in 1 .. 6"),
        ({"last": [7]}, r"rank 7; .* 1 .. 6"),
        ({"last": [-1]}, "rank -1"),
        ({"last": [2.0]}, "rank 2.0"),
        ({"last": [True]}, "rank True"),
        ({"first.0": [8, 8, 9]}, "rank 9; .* 1 .. 8"),
        ({"last": [1] * 4}, "4 parts, which do not divide its 6 outputs"),
        ({"last": []}, "must be a list"),
        ({"last": 3}, "must be a list"),
        ({"last": "3"}, "must be a list"),
        (["last"], "must map layer names"),
    ],
)
def test_bad_descriptions_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        install_low_rank(small_model(), description)


def test_nothing_is_replaced_when_one_entry_is_bad():
    model = small_model()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="rank 99"):
        install_low_rank(model, {"first.0": [2], "last": [99]})
    assert list(model.state_dict()) == before
