"""Adapters of peft and SVDiff: what each does to a weight, and what it cannot start from."""

import sys

import pytest
import torch
from torch import nn

from kindgene.transfer.adapters import ADAPTERS, adapter_transfer
from kindgene.transfer.svdiff import SpectralLinear, svdiff

NEW = ("6", "7", "8")
LAYER = "blocks.0.mlp.fc1"
DECOMPOSING = ["pissa", "svdiff"]


def transfer(method, dense, rank=4, **settings):
    if method == "svdiff":
        return svdiff(dense, NEW, **settings)
    return adapter_transfer(method, dense, NEW, rank, **settings)


def test_pissa_takes_the_best_part_out_of_the_base(start):
    weight = start.dense.get_submodule(LAYER).weight
    layer = transfer("pissa", start.dense).model.get_submodule(LAYER)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    best = (u[:, :4] * s[:4]) @ v[:4]
    adapter = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).double()
    torch.testing.assert_close(adapter, best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.base_layer.weight.double(), weight - best, rtol=1e-4, atol=1e-5)


def test_dora_keeps_the_norms_apart(start):
    layer = transfer("dora", start.dense).model.get_submodule(LAYER)
    norms = start.dense.get_submodule(LAYER).weight.norm(dim=1)
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight, norms)


def test_oft_rotates_inputs(start, fit):
    """A merged weight is the base's times an orthogonal matrix (nearly: peft's Cayley-Neumann series is cut short)."""
    own = transfer("oft", start.dense)
    for name, value in own.model.named_parameters():
        if "oft_R" in name:
            nn.init.normal_(value, std=0.02)
    before, after = start.dense.get_submodule(LAYER).weight, own.in_use().get_submodule(LAYER).weight
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after @ after.mT, before @ before.mT, rtol=1e-3, atol=1e-4)


def test_svdiff_never_lets_a_singular_value_be_negative():
    """W' = U diag(ReLU(s + delta)) V^T, arXiv 2303.11305, equation 3."""
    torch.manual_seed(0)
    linear = nn.Linear(5, 3, dtype=torch.float64)
    layer = SpectralLinear(linear)
    x = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x))
    with torch.no_grad():
        layer.shift.copy_(torch.tensor([0.5, -0.1, -100.0]))
    u, s, v = torch.linalg.svd(linear.weight, full_matrices=False)
    shifted = u @ torch.diag(torch.stack([s[0] + 0.5, s[1] - 0.1, torch.zeros(()).double()])) @ v
    torch.testing.assert_close(layer.weight, shifted)
    torch.testing.assert_close(layer(x), x @ shifted.mT + linear.bias)
    torch.testing.assert_close(layer.merged()(x), layer(x))


@pytest.mark.parametrize("method", [*ADAPTERS, "svdiff"])
def test_other_matrices(start, method):
    """Patterns as of KindConfig.targets; what is not named stays an ordinary layer."""
    own = transfer(method, start.dense, targets=["blocks.1.mlp.*"])
    layers = {name.split(".default")[0] for name in own.trained}
    assert all(name.startswith(("blocks.1.mlp.fc", "y_embedder")) for name in layers)
    assert type(own.model.get_submodule(LAYER)) is nn.Linear
    with pytest.raises(ValueError, match=r"target pattern 'blocks\.7' matches nothing"):
        transfer(method, start.dense, targets=["blocks.7"])


@pytest.mark.parametrize("method", [*ADAPTERS, "svdiff"])
def test_bfloat16(make_dense, batch, method):
    dense = nn.Module.to(make_dense(), torch.bfloat16)
    own = transfer(method, dense)
    x, t, y = batch
    with torch.no_grad():
        found = own.model.eval()(x.bfloat16(), t, y).float()
        null = dense(x.bfloat16(), t, torch.full_like(y, 2)).float()
    assert float((found - null).norm() / null.norm()) < 5e-2


@pytest.mark.parametrize("method", [name for name in ADAPTERS if name != "pissa"] + ["svdiff"])
def test_float64(make_dense, batch, method):
    dense = nn.Module.to(make_dense(), torch.float64)
    x, t, y = batch
    with torch.no_grad():
        found = transfer(method, dense).model.eval()(x.double(), t, y)
        null = dense(x.double(), t, torch.full_like(y, 2))
    assert float((found - null).norm() / null.norm()) < 1e-10


def test_weights_that_cannot_be(make_dense):
    dense = make_dense()
    with torch.no_grad():
        dense.blocks[0].mlp.fc1.weight[3].zero_()
    with pytest.raises(ValueError, match=r"dora divides by the norm of each row of blocks.0.mlp.fc1, and one"):
        transfer("dora", dense)
    transfer("lora", dense)
    with torch.no_grad():
        dense.blocks[0].mlp.fc1.weight.zero_()
    for method in ("dora", "pissa", "oft", "svdiff"):
        with pytest.raises(ValueError, match=f"{method} starts from pre-trained weights, and blocks.0.mlp.fc1 is all"):
            transfer(method, dense)
    with pytest.raises(ValueError, match="cast the float64 model"):
        transfer("pissa", nn.Module.to(make_dense(), torch.float64))
    thin = make_dense(low_rank={LAYER: [3]})
    for method in (*ADAPTERS, "svdiff"):
        with pytest.raises(ValueError, match=r"target blocks\.0\.mlp\.fc1 is a Sequential"):
            transfer(method, thin)
        with pytest.raises(ValueError, match="has none"):
            transfer(method, make_dense(null_row=False))


def test_an_unknown_method(start):
    with pytest.raises(ValueError, match="no adapter method 'ia3'; there is lora, dora"):
        adapter_transfer("ia3", start.dense, NEW, 2)


def test_without_peft(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="pip install 'kindgene\\[peft\\]'"):
        adapter_transfer("lora", start.dense, NEW, 2)
