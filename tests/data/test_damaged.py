"""Damage that shows only on decoding: encoding leaves it out, alike however often and by however many it is made."""

import hashlib
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kindgene import files
from kindgene.data import damaged
from kindgene.data import encode as encode_module
from kindgene.data.arrays import in_memory
from kindgene.data.dataset import Dataset
from kindgene.data.encode import encode
from kindgene.data.folder import FolderDataset, load_folder
from kindgene.data.latents import load_latents
from kindgene.data.regrouped import regrouped
from kindgene.data.skipped import DamagedImageError, read_skipped

N, SHARD, BATCH = 12, 4, 2
BROKEN = (1, 4, 5, 9)  # one of a batch, a whole batch, one more; shards of 1, 2 and 1 of them
FIT = [index for index in range(N) if index not in BROKEN]
LABELS = [0] * 5 + [1] * 6 + [2]  # cats, dogs, and one without class


@pytest.fixture(scope="module")
def vae(tiny_vae: Any) -> Any:
    return tiny_vae(scaling_factor=0.4)


def put(path: Path, seed: int, *, broken: bool) -> None:
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data.getvalue()[: -1000 if broken else None])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of which headers say that all is well; the numbers are those of the data set."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, label in enumerate(LABELS):
        put(folder / ("cat", "dog", "")[label] / f"{number:02d}.png", number, broken=number in BROKEN)
    return folder


@pytest.fixture
def images(root: Path) -> Dataset:
    dataset = load_folder(root, 16, in_memory=False)
    assert (dataset.labels.tolist(), dataset.skipped) == (LABELS, ())
    return dataset


def make(images: Dataset, vae: Any, out: Path, **options: Any) -> Path:
    told = {"shard_size": SHARD, "batch_size": BATCH, "dtype": "float32", "skip_damaged": True, **options}
    return encode(images, vae, out, **told)


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def cache(images: Dataset, vae: Any, tmp_path: Path) -> Path:
    return make(images, vae, tmp_path / "latents")


def test_the_rest_is_encoded(
    root: Path, images: Dataset, vae: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    latents = load_latents(make(images, vae, tmp_path / "latents"), verify="hashes")
    (told,) = caplog.messages
    first = f"{root / 'cat' / '01.png'} cannot be read as JPEG, PNG or WebP (image file is truncated"
    assert told.startswith(f"skipped 4 of 12 entries of the data of {tmp_path / 'latents'} (4 broken): {first}")
    assert len(latents) == len(FIT)
    assert latents.labels.tolist() == [LABELS[index] for index in FIT]
    assert latents.counts() == {"cat": 3, "dog": 4}
    expected = vae.encode(images.batch(torch.tensor(FIT))).latent_dist.mean * 0.4
    torch.testing.assert_close(latents.batch(torch.arange(len(FIT))), expected)
    numbers = torch.arange(len(FIT))
    assert latents.sample(numbers, numbers, 0).isfinite().all()
    assert torch.equal(latents.subset(["dog"]).batch(torch.tensor([0])), latents.batch(torch.tensor([3])))
    assert [len(part) for part in latents.split(0.3, 0)] == [6, 2]

    # The same as where the damage was found beforehand.
    found = make(load_folder(root, 16), vae, tmp_path / "beforehand")
    torch.testing.assert_close(load_latents(found).batch(numbers), expected)
    assert read_skipped(found / "skipped.jsonl") == latents.skipped


def test_what_was_skipped_is_written_down(root: Path, cache: Path) -> None:
    manifest = files.read_json(cache / "manifest.json")
    assert (manifest["images"], manifest["skipped"]) == (N, list(BROKEN))
    assert manifest["counts"] == {"cat": 3, "dog": 4}
    lines = [json.loads(line) for line in (cache / "skipped.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in lines] == [f"{number:02d}.png" for number in BROKEN]
    assert lines[0]["kind"] == "broken"
    assert str(root) not in (cache / "manifest.json").read_text()
    mean = files.read_safetensors(cache / "shards" / "00001.safetensors")["mean"]
    assert mean.isnan().flatten(1).all(1).tolist() == [True, True, False, False]
    assert not mean[2:].isnan().any()


def test_of_what_is_sound_nothing_is_said(root: Path, vae: Any, tmp_path: Path) -> None:
    for number in BROKEN:
        put(root / ("cat", "dog")[LABELS[number]] / f"{number:02d}.png", number, broken=False)
    images = load_folder(root, 16, in_memory=False)
    out = make(images, vae, tmp_path / "latents")
    assert files.read_json(out / "manifest.json")["skipped"] == []
    assert not (out / "skipped.jsonl").exists()
    assert files.read_metadata(out / "shards" / "00000.safetensors") == {}
    assert load_latents(out).skipped == ()
    assert tree(out) == tree(make(images, vae, tmp_path / "refusing", skip_damaged=False))


def test_unless_asked_for_the_first_stops_it(root: Path, images: Dataset, vae: Any, cache: Path) -> None:
    told = rf"{root}.cat.01\.png cannot be read as JPEG, PNG or WebP \(.*\); replace or remove it$"
    with pytest.raises(ValueError, match=told):
        make(images, vae, cache.parent / "refusing", skip_damaged=False)
    assert not (cache.parent / "refusing" / "manifest.json").exists()
    before = tree(cache)
    with pytest.raises(ValueError, match=told):  # left out by an earlier attempt
        make(images, vae, cache, skip_damaged=False)
    assert tree(cache) == before
    make(images, vae, cache.parent / "refusing")  # goes on with what is there
    assert tree(cache.parent / "refusing") == before


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_killed_attempt_is_finished_to_the_same_bytes(
    images: Dataset, vae: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """After none, some and all of the shards."""
    out, write, count = cache.parent / "again", files.write_safetensors, iter(range(9))

    def killed(path: Path, tensors: Any, metadata: Any = None) -> None:
        if next(count) == done:
            raise KeyboardInterrupt
        write(path, tensors, metadata)

    monkeypatch.setattr(encode_module.files, "write_safetensors", killed)
    with pytest.raises(KeyboardInterrupt):
        make(images, vae, out)
    monkeypatch.undo()
    make(images, vae, out)
    assert tree(out) == tree(cache)


def test_run_again_it_finds_all_done_and_makes_lost_shards_anew(images: Dataset, vae: Any, cache: Path) -> None:
    before = tree(cache)
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}
    make(images, vae, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")} == stamps
    (cache / "shards" / "00001.safetensors").unlink()
    make(images, vae, cache)
    assert tree(cache) == before


def test_several_processes_agree(images: Dataset, vae: Any, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    meeting, said = Barrier(2), [None, None]

    class Process:
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def gather(self, value: Any) -> list[Any]:
            said[self.rank] = value
            meeting.wait(20)
            values = list(said)
            meeting.wait(20)
            return values

        def share(self, value: Any) -> Any:
            return self.gather(value)[0]

        def first(self, work: Callable[[], Any]) -> Any:
            result = work() if self.rank == 0 else None
            meeting.wait(20)
            return result

    caplog.clear()
    out = cache.parent / "two"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: make(images, vae, out, processes=Process(rank)), range(2)))
    assert tree(out) == tree(cache)
    assert len(caplog.messages) == 1


def test_a_class_that_lost_all_its_images_is_named(root: Path, vae: Any, tmp_path: Path) -> None:
    for number in (0, 2, 3):
        put(root / "cat" / f"{number:02d}.png", number, broken=True)
    images = load_folder(root, 16, in_memory=False)
    with pytest.raises(ValueError, match=r"images of class 'cat' can be used, the first: .*00\.png cannot be read"):
        make(images, vae, tmp_path / "latents")
    assert not (tmp_path / "latents" / "manifest.json").exists()


def test_those_without_class_may_all_go(root: Path, vae: Any, tmp_path: Path) -> None:
    put(root / "11.png", 11, broken=True)
    made = make(load_folder(root, 16, in_memory=False), vae, tmp_path / "latents")
    assert load_latents(made).labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_a_file_that_vanished_stops_it(root: Path, images: Dataset, vae: Any, tmp_path: Path) -> None:
    """A folder that is no longer there must not empty all that is left to do."""
    (root / "dog" / "07.png").unlink()
    with pytest.raises(ValueError, match=r"07\.png cannot be read .*No such file.*; it was there when") as raised:
        make(images, vae, tmp_path / "latents")
    assert not isinstance(raised.value, DamagedImageError)


def test_regrouped_classes(images: Dataset, vae: Any, tmp_path: Path) -> None:
    latents = load_latents(make(regrouped(images, {"animal": ["dog", "cat"]}), vae, tmp_path / "latents"))
    assert latents.counts() == {"animal": 7}
    expected = vae.encode(images.batch(torch.tensor(FIT[:-1]))).latent_dist.mean * 0.4
    torch.testing.assert_close(latents.batch(torch.arange(7)), expected)


@pytest.fixture
def repaired(images: Dataset, root: Path) -> Dataset:
    """The same data, its damage gone while nobody looked."""
    put(root / "cat" / "01.png", 1, broken=False)
    return images


def test_what_can_be_read_after_all_is_said_to_be_so(repaired: Dataset) -> None:
    (one,) = damaged.named(repaired, [1])
    assert str(one) == "image 1 could not be decoded when its turn came, and can be now"
    pixels, fit = damaged.read_fit(repaired, torch.tensor([4, 1]), skip=True)
    assert fit.tolist() == [False, True]
    assert torch.equal(pixels, repaired.batch(torch.tensor([1])))
    assert isinstance(repaired, FolderDataset)
    with pytest.raises(DamagedImageError, match=r"or have all images decoded first, which .* \(check=full\)"):
        in_memory(repaired)
