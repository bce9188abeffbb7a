"""Latents to train on: of what was asked for, and with no option that only images could heed."""

import json
from dataclasses import replace

import pytest
import torch

from kindgene.cli.prepare import Source, check_run, dataset_of, decoder
from kindgene.data.autoencoder import decoded
from kindgene.interop.vae import load_vae
from kindgene.recipes import find_recipe

SMALL = ("--preset", "tiny/2", "--steps", 1, "--batch-size", 2, "--learngene-rank", 4, "--tailor-rank", 2)


@pytest.fixture(scope="module")
def vae(tiny_vae, tmp_path_factory):
    """Of two latent channels, for grey images."""
    folder = tmp_path_factory.mktemp("vae") / "vae"
    tiny_vae(in_channels=1, out_channels=1, latent_channels=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latents(kindgene, images, vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "latents"
    kindgene("encode", "--data", images, "--vae", vae, "--image-size", 8, "--out", folder)
    return folder


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (("--strict",), "leave out --strict, or encode anew"),
        (("--image-column", "image"), "leave out --image-column, or"),
        (("--label-column", ""), "leave out --label-column, or"),
        (("--set", "min_side=4"), "leave out --set min_side=4, or"),
        (("--set", "check=full", "--set", "split=test"), "leave out --set check=full, --set split=test, or"),
        (("--set", "channels=4"), "have 2 channels, not 4 (--set channels)"),
        (("--image-size", 16), "are of images of 8x8 pixels, not 16 (--image-size)"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_latents_cannot_heed_is_refused(refused, latents, tmp_path, choice, told):
    assert told in refused("pretrain", "--data", latents, *SMALL, *choice, "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_a_recipe_says_of_images_is_not_held_against_latents(latents, tmp_path):
    recipe = find_recipe("folder-32").data
    settings = replace(recipe, data=str(latents), channels=2, image_size=8)
    dataset, shape = dataset_of(Source(settings), tmp_path, dry=False)
    assert (recipe.min_side, shape, dataset.flip) == (1, (2, 4, 4), True)


def test_a_run_of_latents_says_of_which_images_and_vae(kindgene, images, vae, latents, tmp_path):
    for name, look in (
        ("before", ("--data", latents)),
        ("on the way", ("--data", images, "--image-size", 8, "--vae", vae)),
    ):
        (tmp_path / name).mkdir()
        if name == "on the way":  # a run that was stopped while it made latents is no run yet
            (tmp_path / name / "latents").mkdir()
        kindgene("pretrain", *look, *SMALL, "--out", tmp_path / name)
        told = json.loads((tmp_path / name / "run.json").read_text())["origin"]["data"]
        assert (told["data"], told["image_size"], told["vae"]) == (str(look[1]), 8, "vae")


def test_a_dry_run_takes_every_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for resume in (None, "latest"):
        check_run(tmp_path, resume, dry=True)
        with pytest.raises(ValueError, match="not an empty folder" if resume is None else "no run to resume"):
            check_run(tmp_path, resume, dry=False)


def test_pictures_are_decoded_by_the_first_process(vae, monkeypatch):
    latents = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decoder(str(vae))(latents), decoded(load_vae(vae), latents))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("kindgene.cli.vae.load", None)
    decoder("nowhere")  # which loads nothing in the others
