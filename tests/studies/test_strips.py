"""Strips and the grids made of them: what is written is read, and what is none is named."""

import io

import pytest
import torch
from PIL import Image

from kindgene.studies.samples import samples_picture
from kindgene.studies.strips import read_strip, write_strip


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_to_eight_bits(tmp_path, channels):
    images = torch.rand(5, channels, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_strip(tmp_path / "a" / "x.png", images)
    torch.testing.assert_close(read_strip(tmp_path / "a" / "x.png"), images, atol=1 / 127, rtol=0)


def test_what_is_no_strip(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x\.png: is not a picture that a cell wrote"):
        read_strip(tmp_path / "x.png")
    Image.new("L", (7, 4)).save(tmp_path / "y.png")
    with pytest.raises(ValueError, match=r"y\.png: is 7x4, not square images side by side"):
        read_strip(tmp_path / "y.png")
    with pytest.raises(ValueError, match="is not a picture that a cell wrote"):
        read_strip(tmp_path / "missing.png")


def test_rows_of_fewer_images_are_filled_up(tmp_path):
    write_strip(tmp_path / "one.png", torch.ones(4, 1, 8, 8))
    write_strip(tmp_path / "two.png", torch.ones(2, 1, 8, 8))
    picture = samples_picture({"one": tmp_path / "one.png", "two": tmp_path / "two.png"}, "what they drew")
    assert (picture.file, picture.caption) == ("samples", "what they drew")
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.width > image.height
