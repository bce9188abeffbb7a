"""kindgene sample: the picture holds what `kindgene.sample` draws, a class a row, for every kind of model."""

import numpy as np
import pytest
import torch
from PIL import Image

from kindgene import DiT, Pool, sample

QUICK = ("--steps", 2, "--per-class", 3)


def pixels(path):
    return np.asarray(Image.open(path))


def test_the_picture_is_the_samples(kindgene, shared_pool, tmp_path):
    out = tmp_path / "x.png"
    told = kindgene("sample", shared_pool, "--classes", "2,0", *QUICK, "--guidance", 1.5, "--seed", 3, "--out", out).out
    assert told == f"{out}: 6 samples of 2, 0\n"
    model = Pool.from_pretrained(shared_pool).recombine(["2", "0"])
    generator = torch.Generator().manual_seed(3)
    images = sample(model, ["2"] * 3 + ["0"] * 3, guidance=1.5, steps=2, clip=1.0, generator=generator)
    expected = ((images[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    picture = pixels(out)
    assert picture.shape == (16, 24)
    for index in range(6):
        row, column = divmod(index, 3)
        assert np.array_equal(picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8], expected[index])


def test_guidance_may_lead_away_from_a_class(kindgene, shared_pool, tmp_path):
    """It is fetched with the classes asked for, and not drawn where none are."""
    out, away = tmp_path / "x.png", ("--guidance", 2, "--negative", "1", "--seed", 3)
    told = kindgene("sample", shared_pool, "--classes", "2", *QUICK, *away, "--out", out).out
    assert told == f"{out}: 3 samples of 2\n"
    model = Pool.from_pretrained(shared_pool).recombine(["2", "1"])
    generator = torch.Generator().manual_seed(3)
    images = sample(model, ["2"] * 3, guidance=2.0, negative="1", steps=2, clip=1.0, generator=generator)
    expected = ((images[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    assert np.array_equal(pixels(out), np.concatenate(list(expected), axis=1))
    assert "samples of 0, 2\n" in kindgene("sample", shared_pool, *QUICK, *away, "--out", out).out
    told = kindgene("sample", shared_pool, *QUICK, "--negative", "1", "--out", out, code=2).err
    assert "negative '1' is for guidance" in told


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm++"])
def test_schedulers_and_seeds(kindgene, shared_pool, tmp_path, scheduler):
    pictures = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.png"
        kindgene("sample", shared_pool, *QUICK, "--scheduler", scheduler, "--seed", seed, "--out", out)
        pictures.append(pixels(out))
    assert pictures[0].shape == (24, 24)
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_every_kind_of_model(kindgene, run, merged, shared_pool, tmp_path):
    out = tmp_path / "x.png"
    for path, rows in ((run, 3), (shared_pool, 3), (merged, 1)):
        kindgene("sample", path, *QUICK, "--out", out)
        assert pixels(out).shape == (8 * rows, 24)


def test_clipping_is_the_samplers(kindgene, monkeypatch, merged, tmp_path):
    seen = []

    def spy(model, classes, **settings):
        seen.append(settings["clip"])
        return sample(model, classes, **settings)

    monkeypatch.setattr("kindgene.diffusion.sampler.sample", spy)
    for clip in ("--clip", "--no-clip"):
        kindgene("sample", merged, *QUICK, clip, "--out", tmp_path / "x.png")
    assert seen == [1.0, None]


def test_colour_and_a_name_with_a_comma(kindgene, fish_pool, tmp_path):
    kindgene("sample", fish_pool, "--classes", r"tench\, Tinca tinca", *QUICK, "--out", tmp_path / "grey.png")
    assert pixels(tmp_path / "grey.png").shape == (8, 24)
    colour = DiT.from_preset("tiny/2", num_classes=1, class_names=["red"], in_channels=3)
    colour.save_pretrained(tmp_path / "colour")
    kindgene("sample", tmp_path / "colour", *QUICK, "--out", tmp_path / "colour.png")
    assert pixels(tmp_path / "colour.png").shape == (8, 24, 3)


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (("--classes", "7"), "no class '7'"),
        (("--scheduler", "dpm"), "dpm"),
        (("--steps", 2000), "steps"),
        (("--guidance", "inf"), "guidance"),
        (("--device", "abacus"), "no device 'abacus'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_leaves_nothing(refused, shared_pool, tmp_path, choice, told):
    assert told in refused("sample", shared_pool, *choice, "--out", tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_what_is_refused_before_any_work(refused, monkeypatch, shared_pool, merged, tmp_path):
    monkeypatch.setattr("kindgene.diffusion.sampler.DiffusionPath.scheduler", None)  # sampling would fail
    latents = DiT.from_preset("tiny/2", num_classes=1, class_names=["x"], in_channels=4)
    latents.save_pretrained(tmp_path / "latents")
    assert "makes 4 channels" in refused("sample", tmp_path / "latents", "--out", tmp_path / "x.png")
    assert "must end in .png" in refused("sample", shared_pool, "--out", tmp_path / "x.jpg")
    assert "make it first" in refused("sample", shared_pool, "--out", tmp_path / "nowhere" / "x.png")
    assert "is a folder" in refused("sample", shared_pool, "--out", _folder(tmp_path / "x.png"))
    assert "did you mean '1'" in refused("sample", merged, "--classes", "11", "--out", tmp_path / "y.png")
    assert "needs a null label" in refused("sample", merged, "--guidance", 2, "--out", tmp_path / "y.png")


def _folder(path):
    path.mkdir()
    return path


def test_a_full_disk_leaves_the_old_picture(refused, full_disk, merged, tmp_path):
    (tmp_path / "x.png").write_text("old")
    full_disk()
    assert "No space left on device" in refused("sample", merged, *QUICK, "--out", tmp_path / "x.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
