"""kindgene evaluate of a model of latents: decoded by its VAE, compared with images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from kindgene.cli.models import load_any
from kindgene.data.autoencoder import decoded, weights_sha256
from kindgene.data.folder import load_folder
from kindgene.evaluation.dino import load_dino
from kindgene.evaluation.drawing import Sampling, drawn
from kindgene.evaluation.evaluate import evaluate_samples
from kindgene.evaluation.reference import make_reference
from kindgene.interop.vae import load_vae

transformers = pytest.importorskip("transformers")

QUICK = ("--per-class", 2, "--steps", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def vae(tiny_vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae") / "small-vae"
    tiny_vae(scaling_factor=0.4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=56, mlp_ratio=1
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve colour images of 16 pixels, in two classes."""
    root = tmp_path_factory.mktemp("photographs")
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        folder = root / ("cat", "dog")[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def latents(kindgene, photographs, vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "latents"
    kindgene("encode", "--data", photographs, "--vae", vae, "--image-size", 16, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def latent_run(kindgene, latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent-run") / "run"
    kindgene("pretrain", "--data", latents, "--preset", "tiny/2", "--steps", 2, "--batch-size", 4, "--out", folder)
    return folder


def test_samples_are_decoded_and_compared_with_images(kindgene, latent_run, photographs, vae, dino):
    look = ("--data", photographs, "--vae", vae, "--dino", dino)
    result = json.loads(kindgene("evaluate", latent_run, *look, *QUICK).out)

    model, extractor, autoencoder = load_any(latent_run, None).model, load_dino(str(dino)), load_vae(vae)
    real = load_folder(photographs, 16, 3)
    asked = ["cat"] * 2 + ["dog"] * 2
    blocks = drawn(model, asked, Sampling(steps=2, clip=None), decode=lambda z: decoded(autoencoder, z))
    reference = make_reference(real, extractor, data="photographs")
    wanted = ["fd", "precision", "recall"]
    expected = evaluate_samples(blocks, asked, wanted, extractor=extractor, reference=reference).figures
    assert {name: result[name] for name in wanted} == pytest.approx(expected, rel=1e-6)
    assert result["metrics"] == wanted  # a folder of photographs has no judge unless asked for
    assert (result["vae"], result["vae_sha256"]) == ("small-vae", weights_sha256(autoencoder))
    assert result["clip"] is None
    assert result["reference"]["shape"] == [3, 16, 16]
    asked_for = json.loads(kindgene("evaluate", latent_run, *look[:4], "--metrics", "recognised", *QUICK).out)
    assert set(asked_for["per_class"]) == {"cat", "dog"}


def test_latents_are_clipped_only_if_asked_for(kindgene, latent_run, photographs, vae):
    look = ("--data", photographs, "--vae", vae, "--metrics", "recognised", *QUICK, "--dry-run")
    assert json.loads(kindgene("evaluate", latent_run, *look, "--clip").out)["clip"] == 1.0
    assert json.loads(kindgene("evaluate", latent_run, *look).out)["clip"] is None


def test_the_loss_is_of_latents(kindgene, refused, latent_run, latents, photographs):
    """Nothing is decoded, so it needs no VAE."""
    result = json.loads(kindgene("evaluate", latent_run, "--data", latents, "--metrics", "loss", "--device", "cpu").out)
    assert result["loss"] > 0
    assert result["loss_images"] == 12
    without = refused("evaluate", latent_run, "--data", photographs, *QUICK)
    assert "give --vae" in without
