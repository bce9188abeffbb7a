"""Latents: what is encoded is what the autoencoder makes; what was begun is finished to the same bytes."""

import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from diffusers import AutoencoderTiny

from kindgene import random
from kindgene.data import encode as encode_module
from kindgene.data.arrays import ArrayDataset
from kindgene.data.autoencoder import LatentScale, decoded, latent_shape, posterior, weights_sha256
from kindgene.data.dataset import flips
from kindgene.data.encode import encode
from kindgene.data.latents import load_latents

N, SHARD, BATCH = 10, 4, 3  # three shards, the last of two images; batches that do not divide them


@pytest.fixture(scope="module")
def make_vae(tiny_vae):
    return lambda **settings: tiny_vae(**{"scaling_factor": 0.4, **settings})


@pytest.fixture(scope="module")
def vae(make_vae):
    return make_vae()


@pytest.fixture(scope="module")
def images():
    pixels = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 3])  # the last without class
    return ArrayDataset(pixels, labels, ("a", "b", "c"))


def make(images, vae, out, **options):
    return encode(images, vae, out, **{"shard_size": SHARD, "batch_size": BATCH, "dtype": "float32", **options})


@pytest.fixture(scope="module")
def cache(images, vae, tmp_path_factory):
    """Not to be changed."""
    return make(images, vae, tmp_path_factory.mktemp("cache") / "latents", vae_name="tiny", preprocessing="none")


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def by_hand(vae, pixels):
    with torch.no_grad():
        found = vae.encode(pixels).latent_dist
    return found.mean, found.std


def test_batches_are_the_scaled_posterior_means(cache, images, vae):
    latents = load_latents(cache)
    assert latents.shape == (4, 4, 4)
    assert len(latents) == N
    order = torch.tensor([9, 0, 5, 5])
    mean, _ = by_hand(vae, images.images[order])
    torch.testing.assert_close(latents.batch(order), mean * 0.4)
    assert latents.batch(order).dtype == torch.float32
    assert torch.equal(latents.labels, images.labels)
    assert latents.class_names == images.class_names
    assert latents.counts() == {"a": 3, "b": 3, "c": 3}
    assert latents.batch(torch.arange(0)).shape == (0, 4, 4, 4)
    with pytest.raises(ValueError, match="has the images 0 to 9"):
        latents.batch(torch.tensor([10]))


def test_samples_are_drawn_from_the_posterior_of_image_or_mirror_image(cache, images, vae):
    latents = load_latents(cache)
    numbers = torch.arange(100, 100 + N)
    flipped = flips(7, numbers)
    assert 0 < flipped.sum() < N
    pixels = torch.where(flipped[:, None, None, None], images.images.flip(-1), images.images)
    mean, std = by_hand(vae, pixels)
    noise = random.noise(7, numbers, (4, 4, 4), purpose=random.Purpose.POSTERIOR)
    drawn = latents.sample(torch.arange(N), numbers, 7)
    torch.testing.assert_close(drawn, (mean + std * noise) * 0.4)
    assert (std > 0).all()

    # Of the sample's number alone: whatever the company, the process, the moment.
    part = torch.tensor([4, 1])
    assert torch.equal(latents.sample(part, numbers[part], 7), drawn[part])
    assert not torch.equal(latents.sample(part, numbers[part] + 1, 7), drawn[part])
    unmirrored = load_latents(cache, flip=False).sample(torch.arange(N), numbers, 7)
    mean, std = by_hand(vae, images.images)
    torch.testing.assert_close(unmirrored, (mean + std * noise) * 0.4)


def test_float16_halves_the_bytes_and_errs_by_a_two_thousandth(cache, images, vae, tmp_path):
    half = load_latents(make(images, vae, tmp_path / "half", dtype="float16"))
    whole = load_latents(cache)
    one, other = half.batch(torch.arange(N)), whole.batch(torch.arange(N))
    assert ((one - other).abs() <= 2**-11 * other.abs() + 1e-7).all()
    sizes = [(root / "shards" / "00000.safetensors").stat().st_size for root in (half.root, whole.root)]
    assert sizes[1] - sizes[0] == SHARD * 2 * 2 * 4 * 4 * 4 * 2  # mean and std, image and mirror, 4x4x4, two bytes


def test_subsets_splits_pickles_and_threads(cache):
    latents = load_latents(cache)
    part = latents.subset(["c", "a"])
    assert part.class_names == ("c", "a")
    assert part.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert torch.equal(part.batch(torch.arange(6)), latents.batch(torch.tensor([0, 2, 3, 5, 6, 8])))
    train, held = latents.split(0.3, seed=0)
    assert (len(train), len(held)) == (7, 3)
    again = pickle.loads(pickle.dumps(part))
    assert torch.equal(again.batch(torch.arange(6)), part.batch(torch.arange(6)))
    fresh = load_latents(cache)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(fresh.batch, torch.arange(N).split(1)))
    assert torch.equal(torch.cat(read), latents.batch(torch.arange(N)))
    with pytest.raises(ValueError, match="nobody"):
        latents.subset(["nobody"])


def test_read_by_worker_processes(cache):
    latents = load_latents(cache)
    latents.batch(torch.arange(2))  # opened here, then again there
    loader = torch.utils.data.DataLoader(_Items(latents), batch_size=None, num_workers=1)
    assert torch.equal(torch.stack(list(loader)), latents.batch(torch.arange(N)))


class _Items(torch.utils.data.Dataset):
    def __init__(self, latents):
        self.latents = latents

    def __len__(self):
        return len(self.latents)

    def __getitem__(self, index):
        return self.latents.batch(torch.tensor([index]))[0]


def test_the_manifest_tells_all(cache, vae):
    manifest = json.loads((cache / "manifest.json").read_text())
    assert manifest["vae_name"] == "tiny"
    assert manifest["preprocessing"] == "none"
    assert manifest["vae"]["sha256"] == weights_sha256(vae)
    assert manifest["vae"]["config"]["block_out_channels"] == [4, 4]
    assert manifest["scale"]["scaling_factor"] == 0.4
    assert manifest["counts"] == {"a": 3, "b": 3, "c": 3}
    assert (manifest["images"], manifest["image_shape"], manifest["latent_shape"]) == (N, [3, 8, 8], [4, 4, 4])
    found = tree(cache)
    assert set(found) == {"manifest.json", "labels.safetensors", *(f"shards/0000{n}.safetensors" for n in range(3))}
    for entry in (manifest["labels"], *manifest["shards"]):
        assert found[entry["file"]] == entry["sha256"]


def test_fingerprints_follow_content_not_place(cache, images, vae, tmp_path):
    moved = load_latents(make(images, vae, tmp_path / "elsewhere", vae_name="tiny"))
    here = load_latents(cache)
    assert moved.fingerprint() == here.fingerprint()
    assert here.subset(["a"]).fingerprint() != here.subset(["b"]).fingerprint()
    other = ArrayDataset(images.images.flip(0), images.labels, images.class_names)
    assert load_latents(make(other, vae, tmp_path / "other")).fingerprint() != here.fingerprint()


@pytest.mark.parametrize("last", ["job.json", "labels.safetensors", "manifest.json"])
def test_killed_while_it_wrote_another_file_it_is_finished_too(cache, images, vae, tmp_path, monkeypatch, last):
    out = tmp_path / "latents"
    replace = encode_module.files.Path.replace

    def killed(path, target):
        if target.name == last:
            path.rename(path.parent / ".tmp-gone.part")  # out of the writer's own reach, as after a kill
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(encode_module.files.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        make(images, vae, out, vae_name="tiny", preprocessing="none")
    monkeypatch.undo()
    assert (out / ".tmp-gone.part").is_file()
    make(images, vae, out, vae_name="tiny", preprocessing="none")
    assert tree(out) == tree(cache)


@pytest.mark.parametrize("lost", [[0], [1, 2], [0, 1, 2]])
def test_a_killed_attempt_is_finished_to_the_same_bytes(cache, images, vae, tmp_path, monkeypatch, lost):
    out = tmp_path / "latents"
    write, count = encode_module.files.write_safetensors, iter(range(9))

    def killed(path, tensors, metadata=None):
        if path.parent.name == "shards" and next(count) == 3 - len(lost):
            for name in (".tmp-half.part", ".tmpaB3x9Z"):  # ours, and safetensors' own
                (path.parent / name).write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, tensors, metadata)

    monkeypatch.setattr(encode_module.files, "write_safetensors", killed)
    with pytest.raises(KeyboardInterrupt):
        make(images, vae, out, vae_name="tiny", preprocessing="none")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="was not finished"):
        load_latents(out)
    encoded = []
    monkeypatch.setattr(encode_module, "posterior", lambda *some: encoded.append(some) or posterior(*some))
    make(images, vae, out, vae_name="tiny", preprocessing="none")
    assert tree(out) == tree(cache)
    assert len(encoded) == sum({0: 2, 1: 2, 2: 1}[shard] for shard in range(3 - len(lost), 3))


def test_what_is_whole_stays_and_what_is_damaged_is_made_anew(cache, images, vae, tmp_path, monkeypatch):
    out = make(images, vae, tmp_path / "latents", vae_name="tiny", preprocessing="none")
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    make(images, vae, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == stamps
    shard = out / "shards" / "00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    load_latents(out)  # of the right size
    with pytest.raises(ValueError, match=r"00001\.safetensors does not have the hash"):
        load_latents(out, verify="hashes")
    shard.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="it is damaged"):
        load_latents(out)
    load_latents(out, verify="nothing")
    (out / "shards" / "00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00001\.safetensors has .* bytes"):
        load_latents(out)
    make(images, vae, out, vae_name="tiny", preprocessing="none")
    assert tree(out) == tree(cache)
    load_latents(out, verify="hashes")


def test_several_processes_make_the_same(cache, images, vae, tmp_path):
    meeting, said = Barrier(2), [None, None]

    class Process:
        size = 2

        def __init__(self, rank):
            self.rank = rank

        def gather(self, value):
            said[self.rank] = value
            meeting.wait(20)
            values = list(said)
            meeting.wait(20)
            return values

        def share(self, value):
            return self.gather(value)[0]

        def first(self, work):
            result = work() if self.rank == 0 else None
            meeting.wait(20)
            return result

    out = tmp_path / "latents"
    with ThreadPoolExecutor(2) as pool:
        told = {"vae_name": "tiny", "preprocessing": "none"}
        list(pool.map(lambda rank: make(images, vae, out, processes=Process(rank), **told), range(2)))
    assert tree(out) == tree(cache)


SCALES = {
    "scale": ({"scaling_factor": 0.4}, lambda z: z * 0.4),
    "shift": ({"scaling_factor": 0.4, "shift_factor": 0.1}, lambda z: (z - 0.1) * 0.4),
    "mean and std": (
        {"scaling_factor": 0.5, "latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (1.0, 2.0, 1.0, 2.0)},
        lambda z: (
            (z - torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)) * 0.5 / torch.tensor([1.0, 2, 1, 2]).view(1, 4, 1, 1)
        ),
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_the_scale_is_the_autoencoders_own(images, make_vae, tmp_path, name):
    config, scale = SCALES[name]
    vae = make_vae(**config)
    latents = load_latents(make(images, vae, tmp_path / "latents")).batch(torch.arange(N))
    mean, _ = by_hand(vae, images.images)
    torch.testing.assert_close(latents, scale(mean))
    with torch.no_grad():
        torch.testing.assert_close(decoded(vae, latents), vae.decode(mean).sample, rtol=1e-4, atol=1e-5)
    assert LatentScale.from_dict(json.loads(json.dumps(LatentScale.of(vae).to_dict()))) == LatentScale.of(vae)


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ({"scaling_factor": None}, "scaling_factor is None"),
        ({"scaling_factor": 0.0}, "above 0"),
        ({"scaling_factor": 1.0, "shift_factor": float("nan")}, "shift_factor"),
        ({"scaling_factor": 1.0, "latents_mean": (1.0,)}, "only one of"),
        ({"scaling_factor": 1.0, "latents_mean": (1.0,), "latents_std": (0.0,)}, "above 0"),
        ({"scaling_factor": 1.0, "shift_factor": 1.0, "latents_mean": (1.0,), "latents_std": (1.0,)}, "which of them"),
    ],
)
def test_scales_that_cannot_be(scale, told):
    with pytest.raises(ValueError, match=told):
        LatentScale(**scale)


def test_autoencoders_and_images_that_do_not_fit(vae):
    tiny = AutoencoderTiny(encoder_block_out_channels=(4,), decoder_block_out_channels=(4,),
                           num_encoder_blocks=(1,), num_decoder_blocks=(1,))  # fmt: skip
    with pytest.raises(ValueError, match="the VAE is a AutoencoderTiny"):
        latent_shape(tiny, (3, 8, 8))
    with pytest.raises(ValueError, match="takes images of 3 channels, these have 1"):
        latent_shape(vae, (1, 8, 8))
    with pytest.raises(ValueError, match="9x9 pixels do not divide so"):
        latent_shape(vae, (3, 9, 9))


def test_what_is_refused_leaves_nothing_and_touches_nothing(cache, images, vae, make_vae, tmp_path):
    before = tree(cache)
    other = ArrayDataset(-images.images, images.labels, images.class_names)
    for changed, told in (
        (lambda: make(other, vae, cache), "other data"),
        (lambda: make(images, make_vae(scaling_factor=0.5), cache), "other scale, vae"),
        (lambda: make(images, vae, cache, shard_size=5), "other shard_size"),
        (lambda: make(images, vae, cache, dtype="float16"), "other dtype"),
    ):
        with pytest.raises(ValueError, match=told):
            changed()
    assert tree(cache) == before
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        make(images, vae, tmp_path)
    with pytest.raises(ValueError, match="not an empty folder"):
        make(images, vae, tmp_path / "mine")
    for wrong in ({"batch_size": 0}, {"shard_size": 0}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match=r"at least 1|not 'bfloat16'"):
            make(images, vae, tmp_path / "x", **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_latents_that_float16_cannot_hold_are_refused(images, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "posterior", lambda *some: tuple(1e6 * each for each in posterior(*some)))
    with pytest.raises(ValueError, match=r"the latents of image 0 are not finite as torch\.float16"):
        make(images, vae, tmp_path / "x", dtype="float16")


def test_folders_that_are_no_latents(tmp_path):
    with pytest.raises(ValueError, match="holds no latents"):
        load_latents(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not the manifest of latents"):
        load_latents(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "kindgene-latents", "format_version": 9}')
    with pytest.raises(ValueError, match="format version 9"):
        load_latents(tmp_path)
    with pytest.raises(ValueError, match="verify is 'all'"):
        load_latents(tmp_path, verify="all")
