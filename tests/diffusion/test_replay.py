"""Recorded and replayed calls: the logic with a stand-in for CUDA's graphs on a CPU, equality on a GPU."""

import pytest
import torch

from kindgene.diffusion.replay import ReplayedModel
from kindgene.diffusion.sampler import sample
from kindgene.models.dit import DiT

SIZE = {"input_size": 4, "patch_size": 2, "in_channels": 1, "hidden_size": 16, "depth": 1, "num_heads": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = DiT(**SIZE, num_classes=3, learn_sigma=False, class_names=["a", "b", "c"]).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    return model


class Recorder:
    """Stands in for CUDA's graphs: a replay computes again and writes where the recorded call wrote."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, call):
        self.recorded += 1
        output = call()

        def replay():
            self.replayed += 1
            output.copy_(call())

        return replay, output


def draw(model, classes=("a", "b", None, "a", "c"), **options):
    options = {"guidance": 1.5, "steps": 4, "clip": 1.0, **options}
    return sample(model, list(classes), generator=torch.Generator().manual_seed(3), **options)


def test_samples_are_the_same_and_each_shape_is_recorded_once(model):
    recorder = Recorder()
    replayed = ReplayedModel(model, recorder, device="cpu")
    for guidance in (1.0, 1.5):
        expected = draw(model, batch_size=2, guidance=guidance)
        assert torch.equal(draw(replayed, batch_size=2, guidance=guidance), expected)
    assert recorder.recorded == 3  # calls of 1, 2 and 4
    assert recorder.replayed == 2 * 4 * 3
    assert torch.equal(draw(replayed, ["b"] * 4, batch_size=2), draw(model, ["b"] * 4, batch_size=2))
    assert recorder.recorded == 3


def test_an_output_outlives_the_next_call(model):
    replayed = ReplayedModel(model, Recorder(), device="cpu")
    t, y = torch.zeros(2, dtype=torch.long), torch.tensor([0, 1])
    x, other = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        first = replayed(x, t, y)
        replayed(other, t, y)
        assert torch.equal(first, model(x, t, y))


def test_it_is_recorded_anew_when_it_would_be_wrong(model):
    recorder = Recorder()
    replayed = ReplayedModel(model, recorder, device="cpu")
    x, t, y = torch.randn(2, 1, 4, 4), torch.zeros(2, dtype=torch.long), torch.tensor([0, 1])

    @torch.no_grad()
    def same():
        return torch.equal(replayed(x, t, y), model(x, t, y)), recorder.recorded

    assert same() == (True, 1)
    with torch.no_grad():
        model.final_layer.linear.bias.add_(1)  # in place: the recording sees it
    assert same() == (True, 1)
    model.final_layer.linear.bias = torch.nn.Parameter(torch.ones(4))
    assert same() == (True, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert same() == (True, 3)
    model.train()
    assert same() == (True, 4)


def test_with_gradients_and_on_other_devices_the_model_itself_is_called(model):
    recorder = Recorder()
    x, t, y = torch.randn(2, 1, 4, 4), torch.zeros(2, dtype=torch.long), torch.tensor([0, 1])
    ReplayedModel(model, recorder, device="cpu")(x, t, y).sum().backward()
    assert model.x_embedder.proj.weight.grad is not None
    with torch.no_grad():
        ReplayedModel(model, recorder)(x, t, y)
    assert recorder.recorded == 0


@pytest.mark.gpu
def test_samples_of_a_cuda_graph_are_the_same(model):
    model = model.cuda()
    replayed = ReplayedModel(model)
    for classes in (["a", "b", None], ["c"] * 3, [None] * 3):
        assert torch.allclose(draw(replayed, classes), draw(model, classes), rtol=1e-5, atol=1e-5)
    assert len(replayed._recordings) == 1
