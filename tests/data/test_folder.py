"""Image folders: what is read, how it is cropped, and that nothing unfit gets in unnoticed."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kindgene.data.folder import centre_crop, load_folder


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


@given(width=st.integers(1, 90), height=st.integers(1, 90), share=st.floats(0, 1))
def test_crops_are_square_and_of_the_size_asked(width: int, height: int, share: float) -> None:
    size = max(1, round(min(width, height) * share))
    assert centre_crop(photo(width, height), size).size == (size, size)


def test_crop_keeps_an_image_of_the_right_size() -> None:
    assert np.array_equal(centre_crop(photo(16, 16), 16), photo(16, 16))


def test_crop_takes_the_middle() -> None:
    assert np.array_equal(centre_crop(photo(30, 16), 16), photo(30, 16).crop((7, 0, 23, 16)))


def test_crop_halves_with_a_box_first() -> None:
    """A fine chequerboard halves to an even grey, exactly; a bicubic step leaves a pattern at the rim."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.ptp(np.asarray(centre_crop(Image.fromarray(board), 16))) == 0
    halves = np.repeat(np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4) * 16, 4, axis=0), 4, axis=1)
    assert np.array_equal(centre_crop(Image.fromarray(halves), 4), halves[::4, ::4])


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
def test_an_unfit_file_is_named(root: Path, name: str, content: bytes, message: str) -> None:
    (root / "dog" / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_folder(root, 8)
    assert str(root / "dog" / name) in str(raised.value)


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
        dataset = load_folder(tmp_path, 8)
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
        load_folder(tmp_path, 8)


def test_an_image_outside_the_classes_is_named(root: Path) -> None:
    put(root, "stray.JPG")
    with pytest.raises(ValueError, match=r"stray\.JPG lies in no class folder"):
        load_folder(root, 8)


def test_unfit_options_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="image size is 0"):
        load_folder(root, 0)
    with pytest.raises(ValueError, match="images of 4 channels"):
        load_folder(root, 8, channels=4)
