"""Inception with random weights: its layers, names, resizing and loading. Its public weights come with no package."""

import pytest
import safetensors.torch
import torch
from torch import nn

from kindgene.evaluation.inception import InceptionExtractor, inception_of, resize, spatial_features
from kindgene.evaluation.inception_network import InceptionV3
from kindgene.files import sha256
from kindgene.interop.checkpoint import open_weights


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = InceptionV3()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """A file of these weights, as the public one is: without the counters of batch norms."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(plain(network), path)
    return path


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def features(network, pixels):
    return InceptionExtractor(network)(pixels)


def load(path):
    return inception_of(open_weights(path)[0], path)


def plain(network):
    return {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}


def test_layers_have_the_public_names_and_sizes(network):
    state = plain(network)
    assert len(state) == 472
    # As many as torchvision's without its second head (23,834,568), and eight classes more.
    assert sum(value.numel() for key, value in state.items() if "running" not in key) == 23_834_568 + 8 * 2049
    for key, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6c.branch7x7dbl_5.conv.weight": (192, 160, 1, 7),
        "Mixed_6d.branch1x1.bn.running_var": (192,),
        "Mixed_6e.branch7x7_3.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }.items():
        assert tuple(state[key].shape) == shape, key


def test_features_have_their_shapes(features):
    assert features.pooled.shape == (2, 2048)
    assert features.spatial.shape == (2, 7 * 17 * 17)
    assert features.logits.shape == (2, 1008)
    assert features.pooled.min() >= 0


def test_logits_are_without_bias(network, features):
    torch.testing.assert_close(features.logits, features.pooled @ network.fc.weight.T)


def test_spatial_features_are_the_first_branch_of_mixed_6d(network, pixels, features):
    """``mixed_6/conv`` in TensorFlow's graph, its first 7 channels, position by position."""
    seen = []
    handle = network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, made: seen.append(made))
    InceptionExtractor(network)(pixels[:1])
    handle.remove()
    channels_last = seen[0].permute(0, 2, 3, 1)[..., :7]  # [1, 17, 17, 7], as TensorFlow has it
    torch.testing.assert_close(features.spatial[:1], channels_last.reshape(1, -1))


def test_spatial_order_is_position_then_channel():
    places = torch.arange(2 * 10 * 3 * 4).view(2, 10, 3, 4).float()
    found = spatial_features(places)
    assert found.shape == (2, 84)
    for row, column, channel in ((0, 0, 0), (0, 1, 6), (2, 3, 4)):
        assert found[1, (row * 4 + column) * 7 + channel] == places[1, channel, row, column]


@pytest.mark.parametrize("side", [5, 8, 13, 16])
def test_resizing_is_tensorflow_1s(side):
    """Entry i lies at i * side / size: by hand, in float64."""
    size = 8
    x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(side)).double()

    def at(row, column):
        up, left = int(row), int(column)
        down, right = min(up + 1, side - 1), min(left + 1, side - 1)
        above = x[0, 0, up, left] + (x[0, 0, up, right] - x[0, 0, up, left]) * (column - left)
        below = x[0, 0, down, left] + (x[0, 0, down, right] - x[0, 0, down, left]) * (column - left)
        return above + (below - above) * (row - up)

    expected = torch.tensor([[at(i * side / size, j * side / size) for j in range(size)] for i in range(size)])
    torch.testing.assert_close(resize(x, size)[0, 0], expected.double(), rtol=1e-6, atol=1e-6)


def test_weights_by_a_formula_give_torch_fidelitys_features():
    """Golden figures by torch-fidelity 0.4.0, an independent implementation: every layer and pooling counts."""
    network = InceptionV3()
    state = network.state_dict()
    for place, (key, value) in enumerate(plain(network).items()):
        waves = torch.sin(torch.arange(value.numel()).double() * 0.731 + place).view(value.shape)
        if value.ndim > 1:
            waves = waves * (3 / value[0].numel()) ** 0.5
        else:
            waves = 1 + 0.3 * waves if key.endswith(("bn.weight", "running_var")) else 0.1 * waves
        state[key] = waves.float()
    network.load_state_dict(state)
    found = InceptionExtractor(network)((torch.arange(3 * 20 * 24) * 37 % 256).to(torch.uint8).view(1, 3, 20, 24))
    some = [0, 1, 7, 500, 900, -1]
    for features, mean, expected in (
        (found.pooled, 0.587107, [1.38244, 2.64949, 0.00143, 0.0, 0.13726, 0.0]),
        (found.spatial, 0.958174, [1.6283, 0.28282, 1.69915, 2.74437, 1.48234, 1.66642]),
        (found.logits, -0.001325, [-1.31258, 3.98869, -3.56637, 1.83831, 0.198, -3.97348]),
    ):
        assert float(features.mean()) == pytest.approx(mean, abs=1e-4)
        torch.testing.assert_close(features[0, some], torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_it_is_torch_fidelitys(weights, pixels, features):
    theirs = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3",
        reason="torch-fidelity is not installed, and nothing else needs it; its figures of the same network are above",
    )
    extractor = theirs.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    pooled, logits = extractor(pixels)
    torch.testing.assert_close(features.pooled, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", "-old.pth", ".safetensors"])
def test_a_file_of_weights_is_the_network(network, weights, pixels, features, tmp_path, suffix):
    path = weights
    if suffix == "-old.pth":  # as files of before 2020 are, with the counters that batch norms have
        path = tmp_path / "inception-old.pth"
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    if suffix == ".safetensors":
        path = tmp_path / "inception.safetensors"
        safetensors.torch.save_file(plain(network), path)
    extractor = load(path)
    assert extractor.file_sha256 == sha256(path)
    assert extractor.to_dict()["sha256"] == InceptionExtractor(network).sha256
    grey = pixels[:1, :1]
    torch.testing.assert_close(extractor(grey).pooled, extractor(grey.expand(-1, 3, -1, -1)).pooled)
    torch.testing.assert_close(extractor(pixels[:1]).pooled, features.pooled[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("fc.bias"), "fc.bias is missing"),
        (
            lambda state: state.update({"fc.bias": torch.zeros(1000)}),
            r"fc.bias has the shape \[1000\], expected \[1008\]",
        ),
        (lambda state: state.update({"AuxLogits.fc.bias": torch.zeros(3)}), "AuxLogits.fc.bias is not part of it"),
    ],
)
def test_other_weights_are_refused_by_name_and_hash(network, tmp_path, change, told):
    state = plain(network)
    change(state)
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match=told) as raised:
        load(path)
    assert str(path) in str(raised.value)
    assert sha256(path) in str(raised.value)
    assert "begins with 6726825d" in str(raised.value)
