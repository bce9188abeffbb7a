"""What --data may name, how each kind is told from the others, and what is said of files that cannot be used."""

import json
import shutil

import numpy as np
import pytest
import torch

from kindgene import DiT, TrainConfig, train
from kindgene.cli.models import load_data
from kindgene.data.arrays import ArrayDataset, in_memory
from kindgene.data.digits import load_digits
from kindgene.data.latents import FORMAT

BYTES = np.random.default_rng(0).integers(0, 256, (4, 9, 8, 3), dtype=np.uint8)
SMALL = ("--preset", "tiny/2", "--steps", 1, "--batch-size", 4)


@pytest.fixture
def archive(tmp_path):
    np.savez(tmp_path / "pictures.npz", images=BYTES, labels=np.array(["dog", "cat", "dog", "cat"]))
    return tmp_path / "pictures.npz"


@pytest.fixture
def table(tmp_path, images, monkeypatch):
    """The folder `images` as `datasets` saves it."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = sorted(images.glob("*/*.png"))
    names = sorted({file.parent.name for file in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
    labels = [names.index(file.parent.name) for file in files]
    found = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    found.save_to_disk(tmp_path / "saved")
    (tmp_path / "files" / "data").mkdir(parents=True)
    found.to_parquet(tmp_path / "files" / "data" / "train-00000-of-00001.parquet")
    return tmp_path


def test_a_flip_is_passed_on(images, archive):
    for data in ("digits", images, archive):
        assert load_data(str(data), None, None if data == "digits" else 8, None, flip=True).flip
        assert not load_data(str(data), None, None if data == "digits" else 8, None).flip


def test_an_archive(archive):
    dataset = load_data(str(archive), None, None, None)
    assert (dataset.class_names, dataset.shape, len(dataset)) == (("cat", "dog"), (3, 8, 8), 4)
    assert load_data(str(archive), ["dog"], 4, 1).shape == (1, 4, 4)
    with pytest.raises(ValueError, match=r"no class 'dgo' in .*pictures\.npz; nearest: 'dog'"):
        load_data(str(archive), ["dgo"], None, None)


def test_tables_hold_what_the_folder_holds(table, images):
    folder = load_data(str(images), None, 4, None)
    for data in (table / "saved", f"hf:{table / 'saved'}", table / "files", f"hf:{table / 'files'}"):
        dataset = load_data(str(data), None, 4, None)
        assert dataset.class_names == folder.class_names
        assert torch.equal(in_memory(dataset).images, in_memory(folder).images)
    chosen = load_data(str(table / "saved"), ["zebra", "cat"], 4, 1, split="train", flip=True)
    assert (chosen.class_names, chosen.shape, chosen.flip) == (("zebra", "cat"), (1, 4, 4), True)
    one = load_data(str(table / "saved"), None, 4, 1, label_column="")
    assert one.class_names == ("saved",)
    for options, message in (
        ({"image_column": "img"}, "has no column 'img'; it has 'image', 'label'"),
        ({"label_column": "kind"}, "has no column 'kind'"),
        ({"split": "test"}, "has no split 'test'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_data(str(table / "saved"), None, 4, None, **options)
    with pytest.raises(ValueError, match="give the --image-size"):
        load_data(str(table / "saved"), None, None, None)


def test_ids_on_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    for data in ("some-one/no-such-set", "hf:no-such-set"):
        with pytest.raises(ValueError, match="no-such-set cannot be loaded as a data set: Couldn't reach"):
            load_data(data, None, 8, None)
    (tmp_path / "some-one").mkdir()
    for data in ("some-one/no-such-set", "no-such-set", "a/b/c", "pictures.npz/"):
        with pytest.raises(ValueError, match=r"neither a folder nor one of|there is no file"):
            load_data(data, None, 8, None)


def test_options_of_tables_go_with_tables_alone(images, archive):
    for data in (images, archive, "digits"):
        for options in ({"image_column": "image"}, {"label_column": "label"}, {"split": "train"}):
            with pytest.raises(ValueError, match="is for Hugging Face data sets, and") as raised:
                load_data(str(data), None, None, None, **options)
            assert ("; hf:" in str(raised.value)) == (data is images)


def test_options_of_single_images_go_with_folders_and_tables_alone(refused, archive, tmp_path):
    latents = tmp_path / "latents"
    latents.mkdir()
    (latents / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    for data in (archive, "digits", "glyphs", latents):
        for options, told in (({"strict": True}, "--strict"), ({"check": "full"}, "check=full")):
            with pytest.raises(ValueError, match=f"{told} is for folders .*; {data} is taken as a whole or refused"):
                load_data(str(data), None, None, None, **options)
    for data in ("digits", latents):
        with pytest.raises(ValueError, match="min_side is for images in files"):
            load_data(str(data), None, None, None, min_side=4)
    assert load_data("digits", None, 8, None, min_side=1).shape == (1, 8, 8)  # as some recipes have it
    assert load_data(str(archive), None, 16, None, min_side=1).shape == (3, 16, 16)
    with pytest.raises(ValueError, match="8x9 pixels, smaller than 10"):
        load_data(str(archive), None, 4, None, min_side=10)
    look = ("--data", archive, "--out", tmp_path / "run", *SMALL)
    for options in (("--strict",), ("--set", "check=full"), ("--label-column", "label"), ("--set", "split=test")):
        refused("pretrain", *look, *options)
    refused("pretrain", *look, "--set", "min_side=10")
    refused("reference", "--data", archive, "--strict", "--out", tmp_path / "x.safetensors")


def test_a_cache_of_latents(tmp_path, monkeypatch):
    """Told by its manifest, and read by `kindgene.data.latents`, whose tests are elsewhere."""

    def load(path, *, flip):
        assert path == tmp_path
        return ArrayDataset(torch.zeros(2, 4, 3, 3), torch.tensor([0, 1]), ("cat", "dog"), flip)

    monkeypatch.setattr("kindgene.data.latents.load_latents", load)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    assert load_data(str(tmp_path), None, None, None, flip=True).flip
    assert not load_data(str(tmp_path), None, None, None).flip
    assert load_data(str(tmp_path), ["dog"], 3, 4).class_names == ("dog",)
    for size, channels in ((8, None), (None, 3)):
        with pytest.raises(ValueError, match=r"have the shape \(4, 3, 3\), and .* is needed"):
            load_data(str(tmp_path), None, size, channels)


def test_a_manifest_of_something_else_makes_no_latents(images, tmp_path):
    root = shutil.copytree(images, tmp_path / "images")
    (root / "manifest.json").write_text('{"made by": "a camera"}')
    assert len(load_data(str(root), None, 8, 1)) == 12


@pytest.fixture
def damaged(images, tmp_path):
    """The image folder with a broken file, a text, and an image beside the classes."""
    root = shutil.copytree(images, tmp_path / "damaged")
    (root / "cat" / "broken.png").write_bytes(b"")
    (root / "zebra" / "notes.txt").write_text("striped")
    shutil.copy(root / "cat" / "0.png", root / "stray.png")
    return root


def test_unfit_files_are_said_and_training_goes_on(kindgene, damaged, tmp_path):
    look = ("--data", damaged, "--image-size", 8, "--set", "channels=1")
    told = kindgene("pretrain", *look, "--out", tmp_path / "run", *SMALL).err.splitlines()
    assert told[0].startswith(f"kindgene: skipped 2 of 15 entries of {damaged} (1 other suffix, 1 broken): ")
    assert told[1].startswith(f"kindgene: 1 images of {damaged} lie in no class folder")
    assert (tmp_path / "run" / "run.json").exists()


def test_images_without_class_are_said_of_every_kind(images, table, tmp_path, caplog):
    """In the same words but for the reason; not where classes are chosen, since then there are none."""
    root = shutil.copytree(images, tmp_path / "images")
    shutil.copy(root / "cat" / "0.png", root / "stray.png")
    np.savez(tmp_path / "some.npz", images=BYTES, labels=np.array([0, 1, -1, -1]))
    datasets = pytest.importorskip("datasets")
    saved = datasets.load_from_disk(table / "saved").cast_column("label", datasets.Value("int64"))
    saved.map(lambda row: {"label": row["label"] - 1}).save_to_disk(table / "classless")
    for data, told in (
        (root, "1 images of {} lie in no class folder: they train without class"),
        (tmp_path / "some.npz", "2 images of {} have no label (-1): they train without class"),
        (table / "classless", "4 images of {} have no label (-1 or empty): they train without class"),
    ):
        caplog.clear()
        names = load_data(str(data), None, 8, 1).class_names
        assert caplog.messages == [told.format(data)]
        caplog.clear()
        load_data(str(data), names, 8, 1)
        assert not caplog.records


def test_a_run_on_images_decoded_on_demand_is_the_run_on_images_in_memory(images, tmp_path, monkeypatch):
    """One image without class included, and with flips."""
    root = shutil.copytree(images, tmp_path / "images")
    shutil.copy(root / "cat" / "0.png", root / "stray.png")
    config = TrainConfig(steps=3, batch_size=8, label_drop=0.1)
    runs = []
    for limit in (2**30, 0):
        monkeypatch.setattr("kindgene.data.encoded._MEMORY", limit)
        dataset = load_data(str(root), None, 8, 1, flip=True)
        assert isinstance(dataset, ArrayDataset) == (limit > 0)
        torch.manual_seed(0)
        model = DiT.from_preset("tiny/2", num_classes=3, class_names=list(dataset.class_names))
        runs.append(train(model, dataset, config).losses)
    assert runs[0] == runs[1]


def test_of_strict_the_first_is_an_error(damaged, images):
    with pytest.raises(ValueError, match=r"notes\.txt is not one of .*; convert it or move it away"):
        load_data(str(damaged), None, 8, 1, strict=True)
    (damaged / "zebra" / "notes.txt").unlink()
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as JPEG, PNG or WebP; replace or remove it"):
        load_data(str(damaged), None, 8, 1, strict=True)
    assert len(load_data(str(images), None, 8, 1, strict=True)) == 12


def test_small_images_are_enlarged_where_allowed(images):
    with pytest.raises(ValueError, match=r"none of the images of class 'cat' can be used, the first: .*8x8 pixels"):
        load_data(str(images), None, 16, 1)
    assert load_data(str(images), None, 16, 1, min_side=1).shape == (1, 16, 16)


def test_a_class_without_an_image_left_is_one_line(refused, damaged, tmp_path):
    for file in (damaged / "cat").iterdir():
        file.write_bytes(b"")
    look = ("--data", damaged, "--image-size", 8, "--set", "channels=1", "--out", tmp_path / "run")
    assert "class 'cat' can be used, the first: " in refused("pretrain", *look, *SMALL)


def test_embedded_data_is_as_it_was():
    assert torch.equal(in_memory(load_data("digits", None, None, None)).images, load_digits().images)
