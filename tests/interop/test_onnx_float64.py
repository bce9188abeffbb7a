"""What stands in for convolutions, time features and GELUs computes the same."""

import pytest
import torch
from torch import nn

from kindgene.interop.onnx_float64 import PatchProduct, for_float64, with_exact_gelu


def test_a_convolution_of_patches_as_a_product():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, kernel_size=(2, 3), stride=(2, 3)).double()
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(PatchProduct(convolution)(x), convolution(x))


@pytest.mark.parametrize("options", [{"stride": 1}, {"stride": 2, "padding": 1}, {"stride": 2, "dilation": 2}])
def test_other_convolutions_are_refused(options):
    with pytest.raises(ValueError, match="0 is a convolution"):
        for_float64(nn.Sequential(nn.Conv2d(1, 1, kernel_size=2, **options)))


def test_both_dits_compute_the_same_afterwards(make_dit, transformer, inputs):
    for model, channels in ((make_dit(), 1), (transformer, 4)):
        copy = type(model).from_config(model.config).double()
        copy.load_state_dict(model.state_dict())
        x, t, y = inputs(4, channels=channels)
        for_float64(copy.eval())
        assert not [module for module in copy.modules() if isinstance(module, nn.Conv2d)]
        found, expected = copy(x, t, y), model(x, t, y)
        torch.testing.assert_close(getattr(found, "sample", found), getattr(expected, "sample", expected))


# torch copies its own deprecated class when it decomposes a program (`to_program` filters this too).
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
def test_gelu_written_out():
    class Gelu(nn.Module):
        def forward(self, x):
            return nn.functional.gelu(x, approximate="tanh")

    x = torch.linspace(-6, 6, 201, dtype=torch.float64)
    program = with_exact_gelu(torch.export.export(Gelu(), (x,)))
    assert "gelu" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), Gelu()(x), rtol=1e-13, atol=1e-15)
