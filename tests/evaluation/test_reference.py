"""Reference statistics: written and read whole, and refused wherever they would not compare."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation.features import to_pixels
from kindgene.evaluation.reference import (
    is_reference,
    made_with,
    make_reference,
    read_reference,
    with_features,
    write_reference,
)
from kindgene.files import read_metadata, sha256


@pytest.fixture
def file(toy, grey, tmp_path):
    path = tmp_path / "real.safetensors"
    write_reference(path, make_reference(grey, toy, data="greys", features=10))
    return path


def test_it_is_of_all_images(toy, grey):
    seen = []

    class Watching:
        def start(self, total, done=0):
            seen.append(total)

        def update(self, done, **figures):
            seen.append(done)

        def close(self):
            seen.append("closed")

    made = make_reference(grey, toy, data="greys", features=10, batch_size=16, progress=Watching())
    everything = toy(to_pixels(grey.images))
    np.testing.assert_allclose(made.pooled.covariance, np.cov(everything.pooled.double().numpy(), rowvar=False))
    np.testing.assert_allclose(made.spatial.covariance, np.cov(everything.spatial.double().numpy(), rowvar=False))
    assert torch.equal(made.features, everything.pooled[2::3])
    assert seen == [30, 16, 30, "closed"]
    assert (made.facts["data"], made.facts["images"], made.facts["classes"]) == ("greys", 30, ["a", "b", "c"])
    assert made.facts["extractor"] == toy.to_dict()
    assert made.facts["fingerprint"]["images_sha256"] == grey.fingerprint()["images_sha256"]


def test_a_file_gives_it_back(toy, grey, file):
    made, found = make_reference(grey, toy, data="greys", features=10), read_reference(file, toy)
    assert torch.equal(found.pooled.covariance, made.pooled.covariance)
    assert torch.equal(found.spatial.mean, made.spatial.mean)
    assert torch.equal(found.features, made.features)
    assert found.pooled.count == found.spatial.count == 30
    assert found.facts == {"file_sha256": sha256(file), **made.facts}
    assert is_reference(str(file))
    assert made_with(str(file)) == "toy"


def test_the_same_images_give_the_same_file(toy, grey, file, tmp_path):
    write_reference(tmp_path / "again.safetensors", make_reference(grey, toy, data="greys", features=10))
    assert sha256(tmp_path / "again.safetensors") == sha256(file)


def test_none_are_kept_if_none_are_wanted(toy, grey, tmp_path):
    write_reference(tmp_path / "x.safetensors", make_reference(grey, toy, data="greys", features=0))
    assert read_reference(tmp_path / "x.safetensors", toy).features is None


@pytest.mark.parametrize(
    ("attribute", "value", "told"),
    [
        ("name", "other", "another extractor"),
        ("sha256", "0" * 64, "another weights"),
        ("preprocessing", "resized", "another preprocessing"),
    ],
)
def test_another_extractor_is_refused(toy, file, attribute, value, told):
    setattr(toy, attribute, value)
    with pytest.raises(ValueError, match=told) as raised:
        read_reference(file, toy)
    assert str(file) in str(raised.value)
    assert value in str(raised.value)


def test_what_is_no_reference_is_refused(toy, grey, file, tmp_path):
    assert made_with(str(tmp_path / "missing.safetensors")) is None
    with pytest.raises(ValueError, match="there is no such file"):
        read_reference(tmp_path / "missing.safetensors", toy)
    tensors, metadata = safetensors.torch.load_file(file), read_metadata(file)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(tensors, other)
    assert made_with(str(other)) is None
    with pytest.raises(ValueError, match="is not a reference of kindgene reference"):
        read_reference(other, toy)
    facts = json.loads(metadata["kindgene"])
    safetensors.torch.save_file(tensors, other, {"kindgene": json.dumps(facts | {"format": 2})})
    with pytest.raises(ValueError, match="another format than 1"):
        read_reference(other, toy)
    tensors.pop("spatial_mean")
    safetensors.torch.save_file(tensors, other, metadata)
    with pytest.raises(ValueError, match="lacks spatial_mean"):
        read_reference(other, toy)
    other.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_reference(other, toy)
    one = ArrayDataset(grey.images[:1], grey.labels[:1], grey.class_names)
    with pytest.raises(ValueError, match="greys has 1 image"):
        make_reference(one, toy, data="greys")


class TestAdm:
    """Archives as ADM publishes them: ``mu``, ``sigma``, ``mu_s``, ``sigma_s``."""

    @pytest.fixture
    def archive(self, tmp_path):
        path = tmp_path / "VIRTUAL_pets.npz"
        spread = np.ones(2023)
        np.savez(path, mu=np.arange(2048.0), sigma=np.eye(2048), mu_s=spread, sigma_s=np.eye(2023), arr_0=np.zeros(3))
        return path

    def test_it_is_read_for_inception(self, toy, archive):
        assert is_reference(str(archive))
        assert made_with(str(archive)) == "inception"
        toy.name = "inception"
        found = read_reference(archive, toy)
        assert (found.pooled.dimension, found.spatial.dimension) == (2048, 2023)
        assert float(found.pooled.mean[7]) == 7.0
        assert (found.pooled.count, found.features, found.facts["images"]) == (None, None, None)
        assert found.facts["file_sha256"] == sha256(archive)
        assert "not recorded" in found.facts["extractor"]

    def test_features_can_be_added(self, toy, grey, archive):
        toy.name = "inception"
        found = with_features(read_reference(archive, toy), grey, toy, batch_size=7)
        assert torch.equal(found.features, toy(to_pixels(grey.images)).pooled)
        assert found.pooled.count is None

    def test_no_other_extractor_reads_it(self, toy, archive):
        with pytest.raises(ValueError, match="has Inception's statistics, and the extractor is toy"):
            read_reference(archive, toy)

    def test_what_is_none_is_refused(self, toy, tmp_path):
        toy.name = "inception"
        path = tmp_path / "x.npz"
        np.savez(path, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(2))
        with pytest.raises(ValueError, match="has 3 and 2 features"):
            read_reference(path, toy)
        np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
        with pytest.raises(ValueError, match="cannot be read as ADM's statistics"):
            read_reference(path, toy)
        np.savez(path, arr_0=np.zeros(3))
        assert not is_reference(str(path))  # images
        path.write_bytes(b"damaged")
        assert not is_reference(str(path))
        assert not is_reference("digits")
