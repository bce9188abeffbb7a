"""kindgene reference: statistics of any images, in a file that says of which."""

import json

import numpy as np
import pytest
import safetensors.torch

from kindgene import load_digits
from kindgene.evaluation.features import to_pixels
from kindgene.evaluation.learned import SETTINGS, network_extractor
from kindgene.evaluation.network import NetworkSettings
from kindgene.files import read_metadata, sha256


@pytest.fixture(autouse=True)
def quick_network(monkeypatch, tmp_path_factory):
    monkeypatch.setitem(SETTINGS, "digits", NetworkSettings(images_seen=300))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))


def test_statistics_of_some_classes(kindgene, tmp_path):
    out = tmp_path / "real.safetensors"
    told = kindgene("reference", "--data", "digits", "--classes", "3,1", "--features", 20, "--out", out).out
    real = load_digits().subset(["3", "1"])
    assert told.strip() == (f"{out}: {len(real)} images of 2 classes, digits extractor, sha256 {sha256(out)[:16]}")
    tensors, facts = safetensors.torch.load_file(out), json.loads(read_metadata(out)["kindgene"])
    features = network_extractor("digits", 8)(to_pixels(real.images)).pooled.double().numpy()
    np.testing.assert_allclose(tensors["mean"], features.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(tensors["covariance"], np.cov(features, rowvar=False), rtol=1e-5, atol=1e-6)
    assert tensors["features"].shape == (20, 64)
    assert (facts["data"], facts["classes"], facts["images"]) == ("digits", ["3", "1"], len(real))
    assert facts["extractor"]["accuracy"] > 0
    assert facts["versions"].keys() == {"kindgene", "torch"}


def test_batches_change_rounding_alone(kindgene, tmp_path):
    found = []
    for size in (5, 64):
        out = tmp_path / f"{size}.safetensors"
        kindgene("reference", "--data", "digits", "--classes", "3", "--batch-size", size, "--out", out)
        found.append(safetensors.torch.load_file(out))
    for name in ("mean", "covariance", "features"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


def test_a_folder_of_images_and_a_singular_covariance(kindgene, images, tmp_path):
    look = ("--data", images, "--image-size", 8, "--channels", 1, "--extractor", "digits")
    told = kindgene("reference", *look, "--out", tmp_path / "real.safetensors").out
    assert "12 images of 3 classes" in told
    assert "fewer than its 64 features need" in told


def test_what_is_refused(refused, images, tmp_path):
    out = ("--out", tmp_path / "real.safetensors")
    assert "must end in .safetensors" in refused("reference", "--data", "digits", "--out", tmp_path / "x.npz")
    assert "give an --extractor to see" in refused("reference", "--data", images, *out)
    look = ("--data", images, "--extractor", "digits")
    assert "--image-size" in refused("reference", *look, *out)
    colour = refused("reference", *look, "--image-size", 8, *out)
    assert "takes grey images of 8x8 pixels, and these are [N, 3, 8, 8]" in colour
    assert "no class 'x'" in refused("reference", "--data", "digits", "--classes", "x", *out)
    assert not list(tmp_path.iterdir())
