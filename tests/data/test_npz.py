"""Numpy archives: ADM's form, ours, and all that is refused."""

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from kindgene.data.arrays import ArrayDataset, in_memory
from kindgene.data.images import centre_crop
from kindgene.data.npz import PixelsDataset, load_npz

BYTES = np.random.default_rng(0).integers(0, 256, (5, 12, 16, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pictures.npz"


def test_adms_reference_batches(file: Path) -> None:
    np.savez(file, BYTES, np.array([3, 0, 3, 7, 0]))
    dataset = load_npz(file, 12)
    assert dataset.class_names == ("0", "3", "7")
    assert dataset.labels.tolist() == [1, 0, 1, 2, 0]
    expected = np.stack([np.asarray(centre_crop(Image.fromarray(image), 12)) for image in BYTES])
    assert torch.equal(in_memory(dataset).images, torch.from_numpy(expected).permute(0, 3, 1, 2) / 127.5 - 1)


def test_without_labels_all_are_one_class(file: Path) -> None:
    np.savez(file, BYTES[..., 0], mu=np.zeros(3))
    dataset = load_npz(file)
    assert (dataset.class_names, dataset.shape, dataset.counts()) == (("pictures",), (1, 12, 12), {"pictures": 5})


@pytest.mark.parametrize(("channels", "shape"), [(None, (3, 8, 8)), (1, (1, 8, 8)), (3, (3, 8, 8))])
def test_named_arrays(file: Path, channels: int | None, shape: tuple[int, int, int]) -> None:
    labels = np.array([0, 1, -1, 2, 1])
    np.savez_compressed(file, images=BYTES, labels=labels, class_names=np.array(["cat", "dog"]), arr_0=BYTES[:1])
    dataset = load_npz(file, 8, channels, flip=True)
    assert (dataset.class_names, dataset.labels.tolist(), dataset.shape) == (("cat", "dog"), [0, 1, 2, 2, 1], shape)
    assert dataset.flip


def test_chosen_classes_and_those_without(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(file, images=BYTES, labels=np.array([0, 1, -1, -1, 1]), class_names=np.array(["cat", "dog"]))
    load_npz(file)
    assert caplog.messages == [f"2 images of {file} have no label (-1): they train without class"]
    caplog.clear()
    dataset = load_npz(file, classes=["dog", "cat"])
    assert (dataset.class_names, dataset.labels.tolist()) == (("dog", "cat"), [1, 0, 0])
    assert not caplog.records
    with pytest.raises(ValueError, match=r"no class 'dgo' in .*pictures\.npz; nearest: 'dog'"):
        load_npz(file, classes=["dgo"])


def test_small_images_are_enlarged_where_allowed(file: Path) -> None:
    np.savez(file, images=BYTES)
    enlarged = load_npz(file, 24, min_side=1)
    assert enlarged.shape == (3, 24, 24)
    expected = np.stack([np.asarray(centre_crop(Image.fromarray(image), 24)) for image in BYTES])
    assert torch.equal(in_memory(enlarged).images, torch.from_numpy(expected).permute(0, 3, 1, 2) / 127.5 - 1)
    with pytest.raises(ValueError, match=r"16x12 pixels, smaller than 13; .* or allow enlarging \(min_side=1\)"):
        load_npz(file, 8, min_side=13)
    np.savez(file, images=np.zeros((2, 3, 6, 6)))
    assert load_npz(file, 6, min_side=6).shape == (3, 6, 6)
    with pytest.raises(ValueError, match="6x6 pixels, smaller than 7"):
        load_npz(file, 6, min_side=7)


def test_texts_as_labels(file: Path) -> None:
    np.savez(file, images=BYTES, labels=np.array(["dog", "cat", "dog", "dog", "cat"]))
    dataset = load_npz(file)
    assert (dataset.class_names, dataset.labels.tolist()) == (("cat", "dog"), [1, 0, 1, 1, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_taken_as_they_are(file: Path, dtype: npt.DTypeLike) -> None:
    images = np.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6).astype(dtype)
    np.savez(file, images=images, labels=np.array([0, 1], dtype=np.uint8))
    dataset = load_npz(file, 6, 4)
    assert torch.equal(in_memory(dataset).images, torch.from_numpy(images).float())
    with pytest.raises(ValueError, match=r"shape \(4, 6, 6\), and \(4, 3, 3\) is wanted"):
        load_npz(file, 3)


def test_many_are_held_as_bytes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(file, images=BYTES, labels=np.array([0, 1, 1, 1, 0]))
    held = load_npz(file, 8, 1)
    assert isinstance(held, ArrayDataset)
    monkeypatch.setattr("kindgene.data.encoded._MEMORY", 100)
    dataset = load_npz(file, 8, 1)
    assert isinstance(dataset, PixelsDataset)
    assert torch.equal(in_memory(dataset).images, held.images)
    for part, same in zip(dataset.subset(["1"]).split(0.5, 1), held.subset(["1"]).split(0.5, 1), strict=True):
        assert torch.equal(in_memory(part).images, same.images)
    assert dataset.fingerprint() == held.fingerprint()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": BYTES}, "holds no array that goes by the name 'images'"),
        ({"images": BYTES[:0]}, "holds no images"),
        ({"images": np.uint8(3)}, "holds no images"),
        ({"images": BYTES[..., :2]}, "expected .N, H, W. or .N, H, W, 1 or 3."),
        ({"images": BYTES.astype(np.int64)}, "the images are int64"),
        ({"images": BYTES / 255}, r"reach from .*|wanted"),
        ({"images": BYTES.astype(np.float32)}, "scale them to"),
        ({"images": np.array([{}, {}])}, "plain arrays"),
        ({"images": BYTES, "labels": np.zeros(4, dtype=int)}, r"labels of .* shape \(4,\).*shape \(5,\)"),
        ({"images": BYTES, "labels": np.zeros(5)}, "labels of .* float64"),
        ({"images": BYTES, "labels": np.array([0, 1, 2, 3, 4]), "class_names": np.array(["a"])}, "label . has no name"),
        ({"images": BYTES, "labels": np.zeros(5, dtype=int), "class_names": np.arange(3)}, "expected texts"),
        ({"images": BYTES, "labels": np.full(5, -1)}, "no image has a class"),
    ],
)
def test_unfit_archives_are_refused(file: Path, arrays: dict[str, npt.NDArray[np.generic]], message: str) -> None:
    if message.startswith("reach"):
        arrays = {"images": arrays["images"] * 3}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message) as raised:
        load_npz(file)
    assert str(file) in str(raised.value)


def test_what_is_no_archive_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*pictures\.npz"):
        load_npz(file)
    np.savez(file, images=BYTES)
    whole = file.read_bytes()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", b"no array")
    told = "cannot be read as an .npz archive of plain arrays"
    for content in (file.read_bytes(), whole[: len(whole) // 2], b"", b"text"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            load_npz(file)
    with file.open("wb") as single:
        np.save(single, BYTES)
    with pytest.raises(ValueError, match="a single array"):
        load_npz(file)


def test_sizes_that_cannot_be(file: Path) -> None:
    np.savez(file, images=BYTES)
    with pytest.raises(ValueError, match="16x12 pixels, smaller than 13"):
        load_npz(file, 13)
    with pytest.raises(ValueError, match="images of 2 channels"):
        load_npz(file, 8, 2)
    with pytest.raises(ValueError, match="image size is 0"):
        load_npz(file, 0)
