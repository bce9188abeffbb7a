"""DINOv2 through transformers, on a tiny one with random weights in a folder."""

import json
import shutil

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from kindgene.evaluation.dino import load_dino

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14, mlp_ratio=2
    )
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(path)
    return path


@pytest.fixture
def own(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "own")


def pixels(channels=3, side=32):
    return torch.randint(0, 256, (3, channels, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_features_are_the_class_token_of_normalised_images(folder):
    extractor = load_dino(str(folder))
    found = extractor(pixels())
    assert (found.pooled.shape, found.spatial, found.logits) == ((3, 16), None, None)
    x = F.interpolate(pixels().float() / 255, (224, 224), mode="bicubic", antialias=True)
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = transformers.Dinov2Model.from_pretrained(folder).eval()(x).last_hidden_state[:, 0]
    torch.testing.assert_close(found.pooled, expected, rtol=1e-4, atol=1e-5)


def test_images_do_not_depend_on_their_batch_and_grey_is_rgb(folder):
    extractor = load_dino(str(folder))
    alone, among = extractor(pixels()[:1]).pooled, extractor(pixels()).pooled[:1]
    torch.testing.assert_close(alone, among, rtol=1e-4, atol=1e-5)
    grey = pixels(1, 8)
    assert torch.equal(extractor(grey).pooled, extractor(grey.expand(-1, 3, -1, -1)).pooled)


def test_it_says_what_it_is(folder):
    one, other = load_dino(str(folder)).to_dict(), load_dino(str(folder)).to_dict()
    assert one == other
    assert (one["name"], one["dimension"]) == ("dinov2", 16)
    assert "224x224" in one["preprocessing"]


def test_what_is_no_dinov2_is_refused(own, tmp_path):
    with pytest.raises(ValueError, match="nor a Hub id such as"):
        load_dino(str(tmp_path / "nowhere"))
    state = safetensors.torch.load_file(own / "model.safetensors")
    state.pop("layernorm.weight")
    safetensors.torch.save_file(state, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack layernorm\.weight"):
        load_dino(str(own))
    (own / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_dino(str(own))
    (own / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        load_dino(str(own))
    (own / "model.safetensors").touch()
    (own / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="of type 'vit', not 'dinov2'"):
        load_dino(str(own))
