"""Image folders: what is read, how it is cropped, and that nothing unfit gets in unnoticed."""

import io
import pickle
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kindgene.data.arrays import ArrayDataset, in_memory
from kindgene.data.folder import FolderDataset, load_folder


def photo(width: int = 24, height: int = 20, seed: int = 0) -> Image.Image:
    """A smooth colour picture, so that lossy formats keep it nearly as it is."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [across, down, (across + down) / 2 * (1 - seed / 9)]
    return Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8))


def put(root: Path, name: str, image: Image.Image | None = None, **options: object) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or photo()).save(file, **options)
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, one fit image each."""
    put(tmp_path, "dog/a.png")
    put(tmp_path, "cat/a.png", photo(seed=1))
    return tmp_path


def test_classes_and_files_in_sorted_order(root: Path) -> None:
    for name, level in (("cat/Z.PNG", 10), ("cat/b.jpeg", 20), ("ant/x.webp", 30), ("ant/y.jpg", 40)):
        put(root, name, Image.new("L", (8, 8), level))
    (root / "README.md").write_text("about these images")
    (root / ".git").mkdir()
    (root / "cat" / ".DS_Store").write_bytes(b"\0")
    dataset = load_folder(root, 8, channels=1)
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 2]
    levels = ((dataset.images.flatten(1).mean(1) + 1) * 127.5).round().tolist()
    assert (levels[:3], levels[4]) == ([30, 40, 10], 20)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_agree(tmp_path: Path, suffix: str, channels: int) -> None:
    put(tmp_path, f"lossy/a.{suffix}", quality=95)
    put(tmp_path, "exact/a.png")
    dataset = load_folder(tmp_path, 12, channels)
    assert dataset.images.shape == (2, channels, 12, 12)
    assert dataset.images.dtype == torch.float32
    torch.testing.assert_close(dataset.images[0], dataset.images[1], atol=0.08, rtol=0)


def test_range_and_axes(tmp_path: Path) -> None:
    """Black is -1, white is 1, channel 0 is red, the first row is the top."""
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    image.paste((255, 255, 255), (0, 0, 4, 1))
    put(tmp_path, "c/a.png", image)
    picture = load_folder(tmp_path, 4).images[0]
    assert torch.equal(picture[:, 0], torch.ones(3, 4))
    assert picture[:, 2, 0].tolist() == [1, -1, -1]


def test_grey_becomes_rgb_and_back(tmp_path: Path) -> None:
    put(tmp_path, "c/a.png", photo().convert("L"))
    colour, grey = load_folder(tmp_path, 10, 3).images, load_folder(tmp_path, 10, 1).images
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    "same",
    [
        photo(12, 12).quantize(200).convert("RGB"),
        photo(12, 12).quantize(200),
        photo(12, 12).quantize(200).convert("RGBA"),
    ],
    ids=["rgb", "palette", "opaque alpha"],
)
def test_kinds_of_png_that_show_the_same_read_the_same(tmp_path: Path, same: Image.Image) -> None:
    put(tmp_path, "c/a.png", same)
    expected = np.asarray(photo(12, 12).quantize(200).convert("RGB"), dtype=np.float32) / 127.5 - 1
    torch.testing.assert_close(load_folder(tmp_path, 12).images[0], torch.tensor(expected).permute(2, 0, 1))


def test_two_levels_and_grey_with_alpha(tmp_path: Path) -> None:
    put(tmp_path, "c/a.png", photo().convert("1"))
    put(tmp_path, "c/b.png", photo().convert("LA"))
    put(tmp_path, "c/c.png", photo().convert("L"))
    images = load_folder(tmp_path, 20, channels=1).images
    assert set(images[0].unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(images[1], images[2])


def test_images_are_turned_upright(tmp_path: Path) -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 3  # upside down
    put(tmp_path, "c/a.png", photo().rotate(180), exif=orientation)
    put(tmp_path, "c/b.png", photo())
    images = load_folder(tmp_path, 20).images
    assert torch.equal(images[0], images[1])


def test_a_cameras_file_of_several_views_is_its_first(tmp_path: Path) -> None:
    data = io.BytesIO()
    photo().save(data, "MPO", save_all=True, append_images=[photo(seed=3)], quality=95)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.jpg").write_bytes(data.getvalue())
    put(tmp_path, "c/b.jpg", quality=95)
    images = load_folder(tmp_path, 20).images
    assert torch.equal(images[0], images[1])


def _png(colour_type: int, channels: int, depth: int = 16) -> bytes:
    """A 16-bit PNG, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x12\x34" * 8 * channels) * 8
    header = struct.pack(">IIBBBBB", 8, 8, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


_HALF_CLEAR = photo()
_HALF_CLEAR.putalpha(128)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.png", _png(0, 1), "deeper than 8 bits"),
        ("deep.png", _png(2, 3), "deeper than 8 bits"),
        ("deep.png", _png(4, 2), "deeper than 8 bits"),
        ("deep.png", _png(6, 4), "deeper than 8 bits"),
        ("inks.jpg", _encoded(photo().convert("CMYK"), "JPEG"), "colour mode CMYK"),
        (
            "moves.webp",
            _encoded(photo(), "WEBP", save_all=True, append_images=[photo(seed=1)]),
            "is animated",
        ),
        ("moves.png", _encoded(photo(), "PNG", save_all=True, append_images=[photo(seed=1)]), "is animated"),
        ("glass.png", _encoded(_HALF_CLEAR, "PNG"), "partly transparent"),
        ("glass.webp", _encoded(_HALF_CLEAR, "WEBP"), "partly transparent"),
        ("glass.png", _encoded(photo().quantize(9), "PNG", transparency=3), "partly transparent"),
        (
            "glass.png",
            _encoded(Image.new("RGB", (9, 9)), "PNG", transparency=(0, 0, 0)),
            "partly transparent",
        ),
        ("small.png", _encoded(photo(30, 7), "PNG"), "30x7 pixels, smaller than 8"),
        ("empty.jpg", b"", "cannot be read"),
        ("text.png", b"no image at all", "cannot be read"),
        ("bitmap.png", _encoded(photo(), "BMP"), "cannot be read"),
        ("half.png", _encoded(photo(), "PNG")[:-60], "cannot be read"),
        ("half.jpg", _encoded(photo(), "JPEG")[:-100], "cannot be read"),
        ("half.webp", _encoded(photo(), "WEBP")[:-10], "cannot be read"),
        ("old.bmp", _encoded(photo(), "BMP"), r"not one of \.jpeg, \.jpg, \.png, \.webp"),
        ("notes.txt", b"", "not one of"),
    ],
)
def test_an_unfit_file_is_named(
    root: Path, name: str, content: bytes, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Left out and said; or, of strict, refused."""
    file = root / "dog" / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_folder(root, 8, strict=True)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not caplog.records
    for options in ({}, {"in_memory": False, "check": "full"}):
        caplog.clear()
        dataset = load_folder(root, 8, **options)
        assert dataset.labels.tolist() == [0, 1]
        (skipped,) = dataset.skipped
        assert skipped.path == str(file)
        assert re.search(message, skipped.reason)
        (told,) = caplog.messages
        assert told.startswith(f"skipped 1 of 3 entries of {root} (1 {skipped.kind}): {file} ")


def test_unfit_files_are_counted_by_kind(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        (root / "dog" / f"broken{number}.png").write_bytes(b"")
    put(root, "cat/small.png", photo(6, 6))
    put(root, "cat/deeper/a.png")
    dataset = load_folder(root, 8)
    assert [skipped.kind for skipped in dataset.skipped] == ["nested folder", "too small", *["broken"] * 4]
    (told,) = caplog.messages
    assert f"skipped 6 of 8 entries of {root} (4 broken, 1 nested folder, 1 too small)" in told
    assert told.endswith("; and 3 more")
    assert told.count("\n") == 0


def test_a_class_that_lost_all_its_images_is_named(root: Path) -> None:
    (root / "dog" / "a.png").write_bytes(b"")
    for held in (True, False):
        with pytest.raises(ValueError, match=r"images of class 'dog' can be used, the first: .*a\.png cannot be read"):
            load_folder(root, 8, in_memory=held)
    (root / "dog" / "a.png").rename(root / "dog" / "a.txt")
    with pytest.raises(ValueError, match=r"dog holds no image that can be used: .*a\.txt is not one of"):
        load_folder(root, 8)
    assert load_folder(root, 8, classes=["cat"]).class_names == ("cat",)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on damaged metadata
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    at=st.floats(0, 1, exclude_max=True),
    value=st.integers(0, 255),
    cut=st.booleans(),
)
def test_damage_is_read_or_named(tmp_path: Path, kind: str, at: float, value: int, cut: bool) -> None:
    """One byte changed, or the end cut off: an image comes out, or a ValueError that names the file."""
    orientation = Image.Exif()
    orientation[0x0112] = 6
    content = bytearray(_encoded(photo(), kind, exif=orientation))
    place = int(at * len(content))
    content[place] = value
    file = tmp_path / "c" / f"a.{kind.lower()}"
    file.parent.mkdir(exist_ok=True)
    for other in file.parent.iterdir():
        other.unlink()
    file.write_bytes(content[:place] if cut else content)
    try:
        dataset = load_folder(tmp_path, 8, strict=True)
    except ValueError as error:
        assert str(file) in str(error)  # noqa: PT017 - whether it raises is up to the damage
    else:
        assert dataset.images.shape == (1, 3, 8, 8)


def test_unfit_layouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        load_folder(tmp_path / "nowhere", 8)
    with pytest.raises(ValueError, match="holds no class folders"):
        load_folder(tmp_path, 8)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="cat holds no images"):
        load_folder(tmp_path, 8)
    file = put(tmp_path, "cat/a.png")
    with pytest.raises(ValueError, match=r"a\.png is not a folder"):
        load_folder(file, 8)
    put(tmp_path, "cat/more/b.png")
    with pytest.raises(ValueError, match="more is a folder within a class"):
        load_folder(tmp_path, 8, strict=True)


def test_a_folder_of_splits_is_seen_through(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/a.png")
    put(tmp_path, "val/cat/a.png")
    with pytest.raises(
        ValueError, match=r"train holds no image that can be used: .*train holds the class folders, give"
    ):
        load_folder(tmp_path, 8)


def test_images_alone_are_one_class_named_after_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "moon/b.png")
    put(tmp_path, "moon/a.jpg")
    (tmp_path / "moon" / "README").write_text("about them")
    monkeypatch.chdir(tmp_path / "moon")
    for path in (tmp_path / "moon", "."):
        dataset = load_folder(path, 8)
        assert (dataset.class_names, dataset.labels.tolist(), dataset.skipped) == (("moon",), [0, 0], ())
    assert not caplog.records
    with pytest.raises(ValueError, match=r"no class 'sun' in .*moon; nearest: 'moon'"):
        load_folder(".", 8, classes=["sun"])


def test_an_image_beside_the_classes_is_without_class(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(root, "stray.JPG")
    for held in (True, False):
        caplog.clear()
        dataset = load_folder(root, 8, in_memory=held)
        assert dataset.labels.tolist() == [0, 1, 2]
        assert dataset.counts() == {"cat": 1, "dog": 1}
        assert caplog.messages == [f"1 images of {root} lie in no class folder: they train without class"]
    assert load_folder(root, 8, classes=["dog", "cat"]).labels.tolist() == [0, 1]
    (root / "stray.JPG").write_bytes(b"")
    assert len(load_folder(root, 8)) == 2


def test_chosen_classes_come_in_their_order(root: Path) -> None:
    put(root, "ant/a.png")
    for held in (True, False):
        chosen = load_folder(root, 8, classes=["dog", "ant"], in_memory=held)
        whole = load_folder(root, 8, in_memory=held).subset(["dog", "ant"])
        assert chosen.class_names == whole.class_names == ("dog", "ant")
        assert chosen.labels.tolist() == [0, 1]
        assert whole.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"no class 'dgo' in .*; nearest: 'dog'"):
        load_folder(root, 8, classes=["dgo"])
    with pytest.raises(ValueError, match="more than once"):
        load_folder(root, 8, classes=["dog", "dog"])


def test_one_image_and_heavy_imbalance(tmp_path: Path) -> None:
    put(tmp_path, "rare/a.png")
    for number in range(60):
        put(tmp_path, f"common/{number}.png", Image.new("L", (8, 8), number))
    for held in (True, False):
        dataset = load_folder(tmp_path, 8, 1, in_memory=held)
        assert dataset.counts() == {"common": 60, "rare": 1}
        assert dataset.subset(["rare"]).batch(torch.tensor([0])).shape == (1, 1, 8, 8)
        with pytest.raises(ValueError, match="class 'rare' has 1 images; a split needs two of each class"):
            dataset.split(0.5, 0)
        train, held_out = dataset.subset(["common"]).split(0.25, 0)
        assert (len(train), len(held_out)) == (45, 15)


@pytest.fixture
def lazy(root: Path) -> FolderDataset:
    """Six images of two classes, one of none, decoded on demand."""
    for number in range(4):
        put(root, f"cat/{number}.jpg", photo(20 + number, 30, seed=number))
    put(root, "stray.png", photo(seed=5))
    dataset = load_folder(root, 12, flip=True, in_memory=False)
    assert isinstance(dataset, FolderDataset)
    return dataset


def test_on_demand_is_the_same_as_in_memory(root: Path, lazy: FolderDataset) -> None:
    held = load_folder(root, 12, flip=True)
    assert isinstance(held, ArrayDataset)
    assert (lazy.class_names, lazy.shape, len(lazy)) == (held.class_names, held.shape, len(held))
    assert torch.equal(lazy.labels, held.labels)
    indices = torch.tensor([6, 0, 3, 3])
    assert torch.equal(lazy.batch(indices), held.batch(indices))
    numbers = torch.tensor([100, 3, 4, 5])
    assert torch.equal(lazy.sample(indices, numbers, 7), held.sample(indices, numbers, 7))
    for part, same in zip(lazy.subset(["cat"]).split(0.4, 3), held.subset(["cat"]).split(0.4, 3), strict=True):
        assert torch.equal(in_memory(part).images, same.images)
    assert torch.equal(in_memory(lazy).images, held.images)
    assert lazy.batch(torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 12, 12)
    with pytest.raises(ValueError, match="but the data set has the images 0 to 6"):
        lazy.batch(torch.tensor([7]))


def test_the_rule_is_the_size_of_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, kind in ((2 * 3 * 8 * 8 * 4 + 1, ArrayDataset), (2 * 3 * 8 * 8 * 4, FolderDataset)):
        monkeypatch.setattr("kindgene.data.encoded._MEMORY", limit)
        assert type(load_folder(root, 8)) is kind


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Four of them, however quick the work; the set of those that read."""
    seen: set[int] = set()
    before = FolderDataset.source

    def source(dataset: FolderDataset, index: int) -> Path:
        seen.add(threading.get_ident())
        return before(dataset, index)

    monkeypatch.setattr(FolderDataset, "source", source)
    monkeypatch.setattr("kindgene.data.lazy._SLOW", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield seen
    torch.set_num_threads(threads)


def test_threads_change_nothing(root: Path, lazy: FolderDataset, request: pytest.FixtureRequest) -> None:
    for number in range(8):
        (root / "cat" / f"broken{number}.png").write_bytes(b"")
    indices = torch.tensor([5, 1, 6, 0, 2, 2, 4])
    alone, held = lazy.batch(indices), load_folder(root, 12)
    seen = request.getfixturevalue("threads")
    assert torch.equal(lazy.batch(indices), alone)
    assert len(seen) > 1
    for where in (True, False):
        again = load_folder(root, 12, in_memory=where)
        assert torch.equal(in_memory(again).images, in_memory(held).images)
        assert again.skipped == held.skipped


def test_the_first_damage_in_a_batch_is_named_whatever_the_threads(root: Path, threads: set[int]) -> None:
    dataset = load_folder(root, 8, in_memory=False)
    for file in ("cat/a.png", "dog/a.png"):
        (root / file).unlink()
    with pytest.raises(ValueError, match=r"dog.a\.png cannot be read"):
        dataset.batch(torch.tensor([1, 0, 1, 0]))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # from Python 3.12 on, of any thread at all
def test_worker_processes_read_it(lazy: FolderDataset) -> None:
    """Under fork, after threads have run here; and pickled, as spawn does."""
    expected = lazy.batch(torch.arange(7))
    read = pickle.loads(pickle.dumps(lazy))
    assert torch.equal(read.batch(torch.arange(7)), expected)
    assert len(pickle.dumps(lazy)) < 4000
    loader = torch.utils.data.DataLoader(
        [torch.arange(3), torch.arange(3, 7)],  # type: ignore[arg-type]
        batch_size=None,
        num_workers=1,
        collate_fn=lazy.batch,
        multiprocessing_context="fork",
    )
    assert torch.equal(torch.cat(list(loader)), expected)


def test_a_fingerprint_decodes_nothing(root: Path, lazy: FolderDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    again = load_folder(root, 12, in_memory=False, flip=lazy.flip)
    smaller = load_folder(root, 8, in_memory=False)
    put(root, "cat/0.jpg", photo(50, 30))
    changed = load_folder(root, 12, in_memory=False)
    (root / "cat" / "0.jpg").rename(root / "cat" / "00.jpg")
    renamed = load_folder(root, 12, in_memory=False)
    monkeypatch.setattr(Image, "open", None)
    assert lazy.fingerprint() == again.fingerprint()
    prints = [str(each.fingerprint()) for each in (lazy, smaller, changed, renamed, lazy.subset(["cat"]))]
    assert len(set(prints)) == 5


def test_damage_that_headers_do_not_show_stops_training(root: Path) -> None:
    content = _encoded(photo(), "PNG")
    (root / "dog" / "half.png").write_bytes(content[:-60])
    dataset = load_folder(root, 8, in_memory=False)
    assert len(dataset) == 3
    with pytest.raises(ValueError, match=r"half\.png cannot be read .* decoded first, which .* \(check=full\)"):
        dataset.batch(torch.arange(3))
    assert len(load_folder(root, 8, in_memory=False, check="full")) == 2
    (root / "dog" / "half.png").unlink()
    with pytest.raises(ValueError, match=r"half\.png cannot be read .*No such file"):
        dataset.batch(torch.arange(3))


def test_a_link_to_nowhere_is_unfit(root: Path) -> None:
    (root / "dog" / "b.png").symlink_to(root / "nowhere")
    (root / "dog" / "c.png").symlink_to(root / "cat" / "a.png")
    assert [skipped.kind for skipped in load_folder(root, 8).skipped] == ["broken"]


class Heard:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def start(self, total: int, done: int = 0) -> None:
        self.told.append(("start", total))

    def update(self, done: int, loss: float | None = None, images_per_second: float | None = None) -> None:
        self.told.append(("update", done))

    def close(self) -> None:
        self.told.append(("close", 0))


def test_long_searches_are_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    load_folder(root, 8, progress=heard)
    assert heard.told == []
    monkeypatch.setattr("kindgene.data.encoded._LONG", 2)
    monkeypatch.setattr("kindgene.data.encoded._BLOCK", 1)
    load_folder(root, 8, in_memory=False, progress=heard)
    assert heard.told == [("start", 2), ("update", 1), ("update", 2), ("close", 0)]


def test_unfit_options_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="image size is 0"):
        load_folder(root, 0)
    with pytest.raises(ValueError, match="images of 4 channels"):
        load_folder(root, 8, channels=4)
    with pytest.raises(ValueError, match="check is 'none'; it is 'headers' or 'full'"):
        load_folder(root, 8, check="none")  # type: ignore[arg-type]
