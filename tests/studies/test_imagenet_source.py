"""ImageNet as a source of the studies: nothing held out is trained on, eyes see images, models latents."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from kindgene.data.imagenet import imagenet_classes, needed_folders
from kindgene.evaluation.pixels import PixelExtractor
from kindgene.studies import imagenet_source
from kindgene.studies.imagenet_source import ImageNet
from kindgene.studies.measure import Eyes, Look

EACH = 4


def make_vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=8,
    ).eval()


def fill(folder, wnids, each):
    """Images of noise, no two alike."""
    generator = np.random.Generator(np.random.PCG64(0))
    for wnid in wnids:
        (folder / wnid).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / wnid / f"{number}.png", compress_level=0)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """All 1,000 class folders, and two far sets. Not to be changed."""
    root = tmp_path_factory.mktemp("imagenet")
    fill(root / "data" / "train", [one.wnid for one in imagenet_classes()], EACH)
    fill(root / "far", ["hubble"], 60)
    fill(root / "far" / "mri", ["axial", "coronal"], 4)
    return root


@pytest.fixture(scope="module")
def source(imagenet, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet_source, "PIXELS", 8)
        folder = tmp_path_factory.mktemp("studies")
        return ImageNet(imagenet / "data", folder, vae=make_vae(), vae_name="tiny", far=imagenet / "far")


def contents(images):
    """What the images are, each as bytes."""
    return [image.numpy().tobytes() for image in images.batch(torch.arange(len(images)))]


def test_what_is_held_out_is_not_trained_on(source):
    splits = source.splits(source.base)
    assert splits.train.class_names == source.base
    parts = [splits.train, splits.validation, splits.test]
    assert sum(map(len, parts)) == EACH * len(needed_folders("base"))
    assert all(min(part.counts().values()) >= 1 for part in parts)
    seen = [set(contents(part)) for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_the_eyes_see_the_images_that_the_latents_are_of(source):
    splits = source.splits(source.base[:3])
    pictures, reported = splits.seen
    assert pictures.shape == (3, 8, 8)
    assert splits.train.shape == (4, 4, 4)
    for latents, images in ((splits.train, pictures), (splits.test, reported)):
        assert torch.equal(latents.labels, images.labels)
        posterior = source.vae.encode(images.batch(torch.arange(len(images)))).latent_dist.mean
        scaled = source.vae.config.scaling_factor * posterior
        torch.testing.assert_close(latents.batch(torch.arange(len(latents))), scaled, rtol=1e-2, atol=1e-3)
    assert splits.clip is None
    assert splits.drawn(torch.zeros(2, 4, 4, 4)).shape == (2, 3, 8, 8)


def test_a_class_is_divided_alike_whatever_else_is_asked_for(source):
    few, all_of_them = source.splits(source.base[2:4]), source.splits(source.base)
    assert set(contents(few.test)) <= set(contents(all_of_them.test))
    assert few.test.class_names == source.base[2:4]


def test_novel_classes_are_encoded_task_by_task(source):
    splits = source.splits(source.novel[:2])
    assert splits.train.class_names == source.novel[:2]
    folders = {path.name for path in source.folder.iterdir() if path.name.startswith("novel-")}
    source.splits(source.novel[:2])
    assert {path.name for path in source.folder.iterdir() if path.name.startswith("novel-")} == folders


def test_far_sets(source, imagenet):
    two = source.far("mri", 10)
    assert two.train.class_names == ("axial", "coronal")
    assert source.judge(two) is not None
    one = source.far("hubble", 10)
    assert one.train.class_names == ("hubble",)
    assert source.judge(one) is None
    with pytest.raises(ValueError, match="has no folder pokemon; it must hold the far sets celeba-hq, hubble"):
        source.far("pokemon", 10)
    with pytest.raises(ValueError, match="far sets are given with --far"):
        ImageNet(imagenet / "data", imagenet, vae=source.vae).far("mri", 10)


def test_measures_go_through_the_decoder(source, tmp_path):
    from kindgene.models.dit import DiT

    splits = source.splits(source.base[:3])
    look = Look(samples=2, sampling_steps=2, guidances=(1.0,), draws=1)
    eyes = Eyes(splits, source.eyes, source.judge(splits), look, 0)
    sizes = {"input_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "depth": 1, "num_heads": 2}
    model = DiT(**sizes, num_classes=3, class_names=list(source.base[:3]), learn_sigma=True)
    found = eyes.figures(model, tmp_path / "x.png")
    assert found["test"] > 0
    assert set(found["recognised"]) == set(found["fd"]) == {"1.0"}
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (6 * 8, 8)
        assert picture.mode == "RGB"
    real = eyes.real(tmp_path / "real.png")
    assert 0 <= real["recognised"] <= 1
    alone = source.far("hubble", 1)
    unjudged = Eyes(alone, source.eyes, None, look, 0)
    assert unjudged.real(tmp_path / "hubble.png")["recognised"] is None


def test_validation_images_are_held_out_where_there_are_any(imagenet, source, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_source, "PIXELS", 8)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(imagenet / "data" / "train")
    fill(tmp_path / "data" / "val", needed_folders("base"), 2)
    other = ImageNet(tmp_path / "data", tmp_path / "latents", vae=make_vae())
    splits = other.splits(other.base[:3])
    divided = source.splits(source.base[:3])
    assert len(splits.train) == len(divided.train) + len(divided.validation) + len(divided.test)
    assert len(splits.validation) == len(splits.test) == len(splits.train) // EACH
    assert torch.equal(splits.test.labels, splits.seen[1].labels)
    assert "validation images" in other.held_out
    assert "validation images" not in source.held_out


def test_what_is_told_and_what_is_counted(source, imagenet):
    told = json.loads(json.dumps(source.told()))["source"]
    assert told["vae"]["name"] == "tiny"
    assert told["extractor"] == PixelExtractor().to_dict()
    assert "4%" in told["held_out"]
    facts = source.facts()
    assert facts["base"] == {"superclasses": 150, "folders": 263, "of": 263, "images": 263 * EACH}
    assert facts["novel"] == {"superclasses": 461, "folders": 737, "of": 737, "images": 737 * EACH}
    assert facts["far"] == {"celeba-hq": None, "hubble": 60, "mri": 8, "pokemon": None}


def test_what_needs_the_vae(imagenet, tmp_path):
    dry = ImageNet(imagenet / "data", tmp_path)
    assert dry.facts()["base"]["superclasses"] == 150
    with pytest.raises(ValueError, match="name the VAE that makes them with --vae"):
        dry.splits(dry.base)
    with pytest.raises(ValueError, match="holds no folders of ImageNet's classes"):
        ImageNet(tmp_path, tmp_path)
