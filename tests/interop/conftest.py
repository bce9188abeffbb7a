"""The smallest pool, its VAE, and how far two outputs are apart."""

import pytest
import torch

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.models.dit import DiT

NAMES = ("tench", "a.b/c", "goldfish")
LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}


def _awake(model, dtype):
    """No weight zero (a closed gate would hide what stands behind it), positions apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name != "pos_embed":
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return torch.nn.Module.to(model, dtype).eval()


@pytest.fixture(scope="session")
def awake():
    return _awake


@pytest.fixture(scope="session")
def make_dit():
    """A plain DiT of five classes, every weight random."""

    def make(dtype=torch.float64, **settings):
        return _awake(DiT.from_preset("tiny/2", **{"num_classes": 5, "depth": 2, **settings}), dtype)

    return make


@pytest.fixture(scope="session")
def make_pool(make_dit):
    """A pool of three classes, one of them with a difficult name."""

    def make(dtype=torch.float64, targets="paper+adaln", **settings):
        dense = make_dit(dtype, num_classes=3, **settings)
        config = KindConfig(num_classes=3, learngene_rank=6, tailor_rank=2, targets=targets, init="random")
        return make_decomposable(dense, config, torch.Generator().manual_seed(1)).decompose(NAMES)

    return make


@pytest.fixture(scope="session")
def limit():
    """The most that an exact export may be off, by dtype."""
    return LIMIT


@pytest.fixture(scope="session")
def error():
    """|found - expected| / |expected|, and neither of them nothing."""

    def measure(found, expected):
        assert found.shape == expected.shape
        assert float(expected.detach().norm()) > 0
        return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())

    return measure


@pytest.fixture(scope="session")
def inputs():
    """Images, timesteps over the whole range and labels 0, 1, 2 ... for a model of these channels."""

    def make(batch, dtype=torch.float64, channels=1):
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(batch, channels, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
        return x, torch.linspace(999, 1, batch).long(), torch.arange(batch)

    return make


@pytest.fixture(scope="session")
def vae(tmp_path_factory):
    """The folder of a tiny AutoencoderKL of four latent channels that halves nothing."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4,),
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=8,
        scaling_factor=0.4,
    )
    folder = tmp_path_factory.mktemp("vae") / "vae"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def nothing_left(tmp_path):
    """Checks that a refusal wrote nothing, not even a temporary folder, beside what was there."""
    before = set(tmp_path.iterdir())
    yield
    assert set(tmp_path.iterdir()) == before


@pytest.fixture(scope="session")
def transformer(awake):
    """A DiTTransformer2DModel as diffusers makes them: embedders of its own in every block, epsilon 1e-5."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=5,
    )
    return awake(model, torch.float64)


@pytest.fixture(scope="session")
def own_backbone(transformer, tmp_path_factory):
    """A pool whose backbone is that transformer."""
    from kindgene.interop.from_dense import import_dense

    folder = tmp_path_factory.mktemp("transformer")
    transformer.save_pretrained(folder)
    return import_dense(folder, dtype="float64", tailor_rank=2).pool
