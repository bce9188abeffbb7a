"""kindgene encode, training on what it made, and decoding: from a folder of images to a picture."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from kindgene import sample
from kindgene.cli.models import load_any
from kindgene.data.autoencoder import decoded
from kindgene.data.latents import load_latents
from kindgene.interop.vae import load_vae

SMALL = ("--preset", "tiny/2", "--steps", 2, "--batch-size", 4, "--learngene-rank", 4, "--tailor-rank", 2)
QUICK = ("--per-class", 2, "--steps", 2)


@pytest.fixture(scope="session")
def make_vae(tiny_vae):
    """Leaves an autoencoder in a folder, and returns the folder."""

    def make(folder, seed=0, **settings):
        tiny_vae(seed, **{"scaling_factor": 0.4, **settings}).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def vae(make_vae, tmp_path_factory):
    return make_vae(tmp_path_factory.mktemp("vae") / "tiny-vae")


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """Six colour images of 16 pixels in two classes."""
    root = tmp_path_factory.mktemp("coloured")
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        folder = root / ("cat", "dog")[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return root


@pytest.fixture
def encode(kindgene, coloured, vae):
    def call(out, *choices):
        look = ("--data", coloured, "--vae", vae, "--image-size", 16, "--shard-size", 2, "--out", out)
        return kindgene("encode", *look, *choices).out

    return call


@pytest.fixture
def latents(encode, tmp_path):
    encode(tmp_path / "latents")
    return tmp_path / "latents"


def test_a_folder_becomes_latents(encode, coloured, vae, tmp_path):
    out = tmp_path / "latents"
    told = encode(out, "--dtype", "float32")
    assert told.startswith(f"{out}: 6 images of 2 classes as float32 latents 4x8x8, 0.0 MB; next: kindgene pretrain")
    assert told.endswith(f" --recipe latents --data {out} --out RUN\n")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["vae_name"] == "tiny-vae"  # not where it lies
    assert str(tmp_path.parent) not in json.dumps(manifest)
    assert len(manifest["shards"]) == 3
    found, autoencoder = load_latents(out), load_vae(vae)
    pixels = np.array(Image.open(coloured / "cat" / "2.png"))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = autoencoder.encode(image).latent_dist.mean * 0.4
    torch.testing.assert_close(found.batch(torch.tensor([1])), expected)
    assert found.counts() == {"cat": 3, "dog": 3}


def test_classes_and_a_pipelines_own_vae(kindgene, coloured, vae, tmp_path):
    shutil.copytree(vae, tmp_path / "pipeline" / "vae")
    look = ("--data", coloured, "--vae", tmp_path / "pipeline", "--image-size", 16, "--classes", "dog")
    kindgene("encode", *look, "--out", tmp_path / "latents")
    assert load_latents(tmp_path / "latents").class_names == ("dog",)


def test_a_vae_of_the_hub(encode, vae, tmp_path, monkeypatch):
    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(vae)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    encode(tmp_path / "latents", "--vae", "user/vae")
    ((name, patterns),) = asked
    assert name == "user/vae"
    assert not any("*" in pattern or pattern.endswith(".bin") for pattern in patterns)  # safetensors alone
    assert json.loads((tmp_path / "latents" / "manifest.json").read_text())["vae_name"] == "user/vae"


def test_run_again_it_finds_all_done(encode, latents, tree):
    before = tree(latents)
    encode(latents)
    assert tree(latents) == before


def test_killed_and_run_again_it_is_the_same(start, encode, kindgene, coloured, vae, latents, tree, tmp_path):
    out = tmp_path / "again"
    look = ("--data", coloured, "--vae", vae, "--image-size", 16, "--shard-size", 2, "--out", out)
    process = start("encode", *look)
    until = time.monotonic() + 60
    while not list(out.glob("shards/*")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    kindgene("encode", *look)
    assert tree(out) == tree(latents)


@pytest.fixture
def damaged(coloured, tmp_path, monkeypatch):
    """The images, of which two are cut off; they are taken for more than memory holds, so only headers are checked."""
    root = shutil.copytree(coloured, tmp_path / "damaged")
    for file in (root / "cat" / "2.png", root / "dog" / "1.png"):
        file.write_bytes(file.read_bytes()[:-60])
    (root / "dog" / "notes.txt").write_text("good dogs")
    monkeypatch.setattr("kindgene.data.encoded._MEMORY", 0)
    return root


def test_damage_found_on_the_way_is_skipped_and_said(kindgene, damaged, vae, tree, tmp_path):
    out = tmp_path / "latents"
    look = ("encode", "--data", damaged, "--vae", vae, "--image-size", 16, "--shard-size", 2, "--out", out)
    done = kindgene(*look)
    assert done.out.startswith(f"{out}: 4 images of 2 classes, 3 skipped ({out / 'skipped.jsonl'}) as float16 latents")
    before, during = done.err.splitlines()[0], done.err.splitlines()[-1]
    assert before.startswith(f"kindgene: skipped 1 of 7 entries of {damaged} (1 other suffix)")
    told = f"kindgene: skipped 2 of 6 entries of the data of {out} (2 broken): {damaged / 'cat' / '2.png'} cannot be"
    assert during.startswith(told)
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [os.path.basename(line["path"]) for line in lines] == ["notes.txt", "2.png", "1.png"]
    assert json.loads((out / "manifest.json").read_text())["skipped"] == [1, 3]
    made = tree(out)
    assert "3 skipped" in kindgene(*look).out  # again, all of it being there
    assert tree(out) == made

    kindgene("pretrain", "--data", out, "--out", tmp_path / "run", *SMALL)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(losses))


def test_damage_found_on_the_way_is_an_error_of_strict(kindgene, refused, damaged, vae, tmp_path):
    (damaged / "dog" / "notes.txt").unlink()
    out = tmp_path / "latents"
    look = ("encode", "--data", damaged, "--vae", vae, "--image-size", 16, "--shard-size", 2, "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kindgene.progress.RichProgress.update", lambda *some, **more: None)
        told = refused(*look, "--strict")
    assert told.startswith(f"kindgene: {damaged / 'cat' / '2.png'} cannot be read as JPEG, PNG or WebP (")
    assert told.endswith("); replace or remove it\n")
    assert "4 images of 2 classes, 2 skipped" in kindgene(*look).out  # goes on
    assert refused(*look, "--strict") == told


def encoded_by_two(data, vae, out):
    """What `kindgene encode` in two processes ends with."""
    program = out.parent / "program.py"
    program.write_text("import kindgene.data.encoded\nkindgene.data.encoded._MEMORY = 0\n"
                       "from kindgene.cli.main import main\nmain()\n")  # fmt: skip
    look = ("--data", data, "--vae", vae, "--image-size", 16, "--shard-size", 2, "--out", out)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, (*launch, "encode", *look))), env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_two_processes_share_the_work(kindgene, damaged, vae, tree, tmp_path):
    part = tmp_path / "part"
    done = encoded_by_two(damaged, vae, part)
    assert done.stdout.count("4 images of 2 classes, 3 skipped") == 1
    assert done.stderr.count("skipped 2 of 6 entries") == 1
    kindgene("encode", "--data", damaged, "--vae", vae, "--image-size", 16, "--shard-size", 2, "--out", tmp_path / "p")
    assert tree(part) == tree(tmp_path / "p")


def test_trained_on_sampled_and_decoded(kindgene, refused, latents, vae, make_vae, tmp_path):
    run, pool, picture = tmp_path / "run", tmp_path / "pool", tmp_path / "x.png"
    kindgene("pretrain", "--data", latents, "--out", run, *SMALL)
    facts = json.loads((run / "run.json").read_text())
    digest = hashlib.sha256((vae / "config.json").read_bytes()).hexdigest()
    assert len(facts["data"]["vae"]["sha256"]) == len(digest)
    assert facts["data"]["vae"]["name"] == "tiny-vae"
    assert facts["model"]["backbone"]["in_channels"] == 4
    kindgene("decompose", run, "--out", pool)

    for model in (run, pool):
        told = refused("sample", model, *QUICK, "--out", picture)
        assert "makes 4 channels" in told
        assert "give --vae, the folder or Hub id of the VAE that it was trained with, tiny-vae" in told
        kindgene("sample", model, *QUICK, "--vae", vae, "--out", picture)
        found = np.asarray(Image.open(picture))
        assert found.shape == (2 * 16, 2 * 16, 3)
        loaded = load_any(model, None).model
        drawn = sample(loaded, ["cat"] * 2 + ["dog"] * 2, steps=2, generator=torch.Generator().manual_seed(0))
        images = ((decoded(load_vae(vae), drawn).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        assert np.array_equal(found[16:, :16], images[2].permute(1, 2, 0).numpy())

    other = make_vae(tmp_path / "other", seed=1)
    assert "was made with tiny-vae" in refused("sample", pool, *QUICK, "--vae", other, "--out", tmp_path / "y.png")
    assert "was made with tiny-vae" in refused("pretrain", "--data", latents, "--vae", other, "--out", tmp_path / "n")
    kindgene("pretrain", "--data", latents, "--out", run, *SMALL, "--resume", "latest")


def test_images_are_encoded_on_the_way(kindgene, refused, coloured, vae, tmp_path):
    run = tmp_path / "run"
    look = ("--data", coloured, "--vae", vae, "--image-size", 16, "--out", run, *SMALL)
    facts = json.loads(kindgene("pretrain", *look, "--dry-run").out)
    assert (facts["shape"], facts["images"]) == ([4, 8, 8], 6)
    assert not run.exists()
    kindgene("pretrain", *look)
    assert load_latents(run / "latents").class_names == ("cat", "dog")
    stamps = {path: path.stat().st_mtime_ns for path in (run / "latents").rglob("*.*")}
    kindgene("pretrain", *look, "--resume", "latest")
    assert {path: path.stat().st_mtime_ns for path in (run / "latents").rglob("*.*")} == stamps

    # Stopped while encoding: the run begins with what is there.
    early = tmp_path / "early"
    shutil.copytree(run / "latents", early / "latents")
    (early / "latents" / "manifest.json").rename(early / "latents" / "job.json")
    shutil.copy(run / "latents" / "manifest.json", tmp_path / "kept.json")
    job = json.loads((early / "latents" / "job.json").read_text())
    for key in ("vae_name", "preprocessing", "counts", "library_version", "labels", "shards"):
        job.pop(key)
    (early / "latents" / "job.json").write_text(json.dumps(job))
    told = refused("pretrain", "--data", early / "latents", "--out", tmp_path / "n")
    assert "encoding it was not finished: run the same kindgene encode again" in told
    kindgene("pretrain", *look[: -len(SMALL) - 1], early, *SMALL)
    assert (early / "latents" / "manifest.json").read_bytes() == (tmp_path / "kept.json").read_bytes()
    other = ("--data", coloured, "--vae", vae, "--image-size", 8, "--out", run, *SMALL)
    assert "was begun with other image_shape, latent_shape, data" in refused("pretrain", *other, "--resume", "latest")
    assert "of images of 16x16 pixels, not 32" in refused(
        "pretrain", "--data", run / "latents", "--image-size", 32, "--out", tmp_path / "n"
    )


@pytest.fixture(scope="session")
def new_class(tmp_path_factory):
    """Three colour images of 16 pixels."""
    root = tmp_path_factory.mktemp("new") / "fox"
    root.mkdir()
    pixels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{number}.png")
    return root


def test_new_classes_of_a_pool_of_latents(kindgene, refused, coloured, new_class, vae, make_vae, latents, tmp_path):
    kindgene("pretrain", "--data", latents, "--out", tmp_path / "base", *SMALL)
    pool = tmp_path / "pool"
    kindgene("decompose", tmp_path / "base", "--out", pool)
    quick = ("--steps", 1, "--batch-size", 3, "--out", tmp_path / "run")
    told = refused("transfer", pool, "--data", new_class, *quick)
    assert "the pool makes latents of 4 channels: give --vae" in told
    other = make_vae(tmp_path / "other", seed=1)
    assert "the pool was made with tiny-vae" in refused("transfer", pool, "--data", new_class, "--vae", other, *quick)
    encode = ("--data", new_class, "--image-size", 16)
    kindgene("encode", *encode, "--vae", other, "--out", tmp_path / "others")
    assert "of another VAE than those that the pool" in refused("transfer", pool, "--data", tmp_path / "others", *quick)
    assert not (tmp_path / "run").exists()

    look = ("transfer", pool, "--data", new_class, "--vae", vae, "--set", "flip=true", *quick)
    facts = json.loads(kindgene(*look, "--dry-run").out)
    assert (facts["shape"], facts["classes"]) == ([4, 8, 8], ["fox"])
    assert not (tmp_path / "run").exists()
    kindgene(*look, "--add")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["flip"] is True
    assert json.loads((pool / "config.json").read_text())["classes"].keys() == {"cat", "dog", "fox"}
    picture = tmp_path / "x.png"
    kindgene("sample", pool, "--classes", "fox", *QUICK, "--vae", vae, "--out", picture)
    with Image.open(picture) as image:
        assert image.mode == "RGB"
    kindgene("encode", *encode, "--vae", vae, "--out", tmp_path / "own")
    kindgene("transfer", pool, "--data", tmp_path / "own", *quick[:-1], tmp_path / "again")


def test_what_cannot_be_encoded(refused, coloured, vae, make_vae, images, latents, tree, tmp_path):
    look = ("--data", coloured, "--image-size", 16, "--out", tmp_path / "x")
    AutoencoderTiny(
        encoder_block_out_channels=(4,),
        decoder_block_out_channels=(4,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
    ).save_pretrained(tmp_path / "taesd")
    for choice, told in (
        ("nowhere", "nowhere is not a folder, nor a Hub repository"),
        ("user/name", "there is no folder 'user/name' here, and the Hub did not give it"),
        (coloured, "has no config.json"),
        (tmp_path / "taesd", "holds a AutoencoderTiny, not an AutoencoderKL"),
    ):
        assert told in refused("encode", *look, "--vae", choice)
    assert "9x9 pixels do not divide so" in refused("encode", *look[:2], *look[4:], "--vae", vae, "--image-size", 9)
    unscaled = make_vae(tmp_path / "unscaled", latents_mean=[0.0] * 4)
    assert "only one of latents_mean" in refused("encode", *look, "--vae", unscaled)
    assert "not 'float8'" in refused("encode", *look, "--vae", vae, "--dtype", "float8")
    assert not (tmp_path / "x").exists()
    before = tree(latents)
    told = refused("encode", *look[:-1], latents, "--vae", vae, "--shard-size", 3)
    assert "begun with other shard_size" in told
    assert tree(latents) == before
