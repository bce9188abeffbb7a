"""One image: how it is cropped, what fits, and what is refused."""

import errno
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kindgene.data.images import UnfitImageError, centre_crop, check_header, read_pixels


def photo(width: int = 24, height: int = 20) -> Image.Image:
    """A smooth colour picture."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([across, down, (across + down) / 2], axis=-1) * 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> io.BytesIO:
    data = io.BytesIO()
    image.save(data, kind)
    data.seek(0)
    return data


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


def test_small_images_are_enlarged_where_allowed() -> None:
    """As ADM does: one bicubic step."""
    assert read_pixels(encoded(photo(30, 7)), 8, 3, 1).shape == (3, 8, 8)
    assert np.array_equal(centre_crop(photo(5, 5), 8), photo(5, 5).resize((8, 8), Image.Resampling.BICUBIC))
    for look in (lambda data: check_header(data, 8), lambda data: read_pixels(data, 8, 3, 8)):
        with pytest.raises(UnfitImageError, match="is 30x7 pixels, smaller than 8") as raised:
            look(encoded(photo(30, 7)))
        assert (raised.value.kind, "min_side" in raised.value.advice) == ("too small", True)


def test_the_header_tells_of_all_but_damage_further_in() -> None:
    whole = encoded(photo(200, 200)).getvalue()
    cut = io.BytesIO(whole[: len(whole) // 2])
    check_header(cut, 8)
    cut.seek(0)
    with pytest.raises(UnfitImageError, match="cannot be read as JPEG, PNG or WebP"):
        read_pixels(cut, 8, 3, 8)


def test_an_alpha_channel_is_looked_at_with_the_header() -> None:
    image = photo().convert("RGBA")
    check_header(encoded(image), 8)
    image.putpixel((0, 0), (0, 0, 0, 254))
    with pytest.raises(UnfitImageError, match="is partly transparent"):
        check_header(encoded(image), 8)


def test_no_address_in_memory_gets_into_a_reason() -> None:
    with pytest.raises(UnfitImageError) as raised:
        check_header(io.BytesIO(b"no image"), 8)
    assert str(raised.value) == "cannot be read as JPEG, PNG or WebP"


def test_a_failing_machine_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnfitImageError, match="No such file"):
        check_header(tmp_path / "nowhere.png", 8)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="Too many open files"):
        check_header(tmp_path / "a.png", 8)
