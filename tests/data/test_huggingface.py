"""Data sets of Hugging Face: saved, in files, by name; none of them from the network."""

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kindgene.data.arrays import in_memory
from kindgene.data.dataset import Dataset
from kindgene.data.folder import load_folder
from kindgene.data.huggingface import HuggingFaceDataset, is_saved, load_hf

datasets = pytest.importorskip("datasets")

LABELS = [0, 1, 2, -1, 1, 2]


def png(value: int, size: int = 12, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).point(lambda level: level // 2 + value).save(data, "PNG", **options)
    return data.getvalue()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(labels: Any = LABELS, feature: Any = None, **images: bytes) -> Any:
    cells = [{"bytes": images.get(f"row{row}", png(20 * row)), "path": None} for row in range(len(labels))]
    feature = feature or datasets.ClassLabel(names=["ant", "bee", "cat"])
    features = datasets.Features({"image": datasets.Image(), "label": feature, "note": datasets.Value("string")})
    columns = {"image": cells, "label": labels, "note": ["x"] * len(labels)}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    table().save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def same(dataset: Dataset, other: Dataset) -> bool:
    return (
        dataset.class_names == other.class_names
        and torch.equal(dataset.labels, other.labels)
        and torch.equal(in_memory(dataset).images, in_memory(other).images)
    )


def test_saved_parts_of_a_saved_set_and_files_are_one(tmp_path: Path, saved: Path) -> None:
    datasets.DatasetDict(train=table().select([0]), test=table()).save_to_disk(tmp_path / "parts")
    (tmp_path / "files").mkdir()
    table().to_parquet(tmp_path / "files" / "train-00000.parquet")
    dataset = load_hf(saved, 8, 1)
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.labels.tolist() == [0, 1, 2, 3, 1, 2]
    assert dataset.shape == (1, 8, 8)
    assert same(load_hf(tmp_path / "parts", 8, 1, split="test"), dataset)
    assert same(load_hf(tmp_path / "files", 8, 1), dataset)
    assert [is_saved(tmp_path / name) for name in ("saved", "parts", "files")] == [True, True, False]


def test_it_is_cropped_as_a_folder_is(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "folder").mkdir()
    for row, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "folder" / name).mkdir()
        (tmp_path / "folder" / name / "a.png").write_bytes(png(20 * row))
    held = in_memory(load_folder(tmp_path / "folder", 5)).images
    assert torch.equal(held, in_memory(load_hf(saved, 5)).images[:3])


def test_on_demand_is_the_same_as_in_memory(saved: Path) -> None:
    lazy, held = load_hf(saved, 8, 1, in_memory=False, flip=True), load_hf(saved, 8, 1)
    assert isinstance(lazy, HuggingFaceDataset)
    assert same(lazy, held)
    assert same(pickle.loads(pickle.dumps(lazy)), held)
    assert same(lazy.subset(["cat", "bee"]), held.subset(["cat", "bee"]))
    assert same(load_hf(saved, 8, 1, classes=["cat", "bee"], in_memory=False), held.subset(["cat", "bee"]))
    for part, other in zip(
        lazy.subset(["cat", "bee"]).split(0.5, 0), held.subset(["cat", "bee"]).split(0.5, 0), strict=True
    ):
        assert same(part, other)
    assert lazy.fingerprint() == load_hf(saved, 8, 1, in_memory=False, flip=True).fingerprint()
    assert lazy.fingerprint() != load_hf(saved, 8, 1, in_memory=False).fingerprint()
    assert lazy.fingerprint() != lazy.subset(["cat", "bee"]).fingerprint()


@pytest.mark.parametrize(
    ("labels", "feature", "names", "found"),
    [
        (["dog", "cat", None, "dog"], "string", ("cat", "dog"), [1, 0, 2, 1]),
        ([40, 3, -1, 40], "int64", ("3", "40"), [1, 0, 2, 1]),
        ([True, False, True, True], "bool", ("False", "True"), [1, 0, 1, 1]),
    ],
)
def test_labels_of_every_kind(
    tmp_path: Path, labels: list[Any], feature: str, names: tuple[str, ...], found: list[int]
) -> None:
    table(labels, datasets.Value(feature)).save_to_disk(tmp_path / "saved")
    dataset = load_hf(tmp_path / "saved", 8)
    assert (dataset.class_names, dataset.labels.tolist()) == (names, found)


def test_images_without_class_are_counted(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_hf(saved, 8)
    assert caplog.messages == [f"1 images of {saved} have no label (-1 or empty): they train without class"]
    caplog.clear()
    load_hf(saved, 8, classes=["ant"])
    load_hf(saved, 8, label_column=None)
    assert not caplog.records


def test_other_columns_and_none(tmp_path: Path) -> None:
    renamed = table().rename_columns({"image": "picture", "label": "kind"})
    renamed.save_to_disk(tmp_path / "saved")
    assert len(load_hf(tmp_path / "saved", 8, image_column="picture", label_column="kind")) == 6
    alone = load_hf(tmp_path / "saved", 8, image_column="picture", label_column=None)
    assert (alone.class_names, alone.counts()) == (("saved",), {"saved": 6})


def test_images_by_path_and_as_plain_bytes(tmp_path: Path, saved: Path) -> None:
    expected = in_memory(load_hf(saved, 8, 1)).images
    paths = [tmp_path / f"{row}.png" for row in range(6)]
    for row, path in enumerate(paths):
        path.write_bytes(png(20 * row))
    for name, cells in (("paths", [str(path) for path in paths]), ("bytes", [path.read_bytes() for path in paths])):
        datasets.Dataset.from_dict({"image": cells, "label": LABELS}).save_to_disk(tmp_path / name)
        dataset = load_hf(tmp_path / name, 8, 1)
        assert dataset.class_names == ("0", "1", "2")
        assert torch.equal(in_memory(dataset).images, expected)


def test_unfit_images_are_named_by_their_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "PNG")
    half = noise.getvalue()[:-1000]
    table(row1=b"no image", row2=png(0, 6), row3=half).save_to_disk(tmp_path / "saved")
    for options in ({}, {"in_memory": False, "check": "full"}):
        caplog.clear()
        dataset = load_hf(tmp_path / "saved", 8, **options)
        assert dataset.labels.tolist() == [0, 1, 2]
        assert [skipped.kind for skipped in dataset.skipped] == ["broken", "too small", "broken"]
        assert dataset.skipped[0].path == f"row 1 of {tmp_path / 'saved'}"
        assert "skipped 3 of 6 entries" in caplog.text
    with pytest.raises(ValueError, match=r"row 1 of .* cannot be read as JPEG, PNG or WebP; replace"):
        load_hf(tmp_path / "saved", 8, strict=True)
    with pytest.raises(ValueError, match=r"row 3 of .* cannot be read .*\(check=full\)"):
        load_hf(tmp_path / "saved", 8, in_memory=False).batch(torch.tensor([1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "img"}, "has no column 'img'; it has 'image', 'label', 'note'"),
        ({"label_column": "class"}, "has no column 'class'; it has 'image', 'label', 'note'"),
        ({"image_column": "label"}, "column 'label' of .* does not hold images but ClassLabel"),
        ({"label_column": "image"}, "column 'image' of .* does not hold labels but Image"),
        ({"image_column": "note"}, "none of the images of class 'ant' can be used, the first: row 0 of"),
        ({"split": "test"}, "has no split 'test'; it has 'train'"),
        ({"classes": ["dog"]}, "no class 'dog' in .*; nearest: 'ant', 'bee', 'cat'"),
        ({"size": 0}, "image size is 0"),
        ({"size": 13}, "none of the images of class 'ant' can be used, the first: row 0 .*12x12 pixels"),
    ],
)
def test_what_is_not_there_is_named(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_hf(saved, **{"size": 8, **options})
    assert "\n" not in str(raised.value)


def test_sets_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table([]).save_to_disk(tmp_path / "empty")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    (tmp_path / "broken" / "dataset_info.json").write_text("{")
    for name, message in (
        (tmp_path / "empty", "empty cannot be loaded as a data set"),
        (tmp_path / "nothing", "nothing cannot be loaded as a data set"),
        (tmp_path / "broken", "broken cannot be loaded as a data set"),
        ("some-one/no-such-set", "some-one/no-such-set cannot be loaded as a data set: Couldn't reach"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            load_hf(name, 8)
        assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"is read by datasets: pip install 'kindgene\[hf\]'"):
        load_hf("some-one/some-set", 8)
