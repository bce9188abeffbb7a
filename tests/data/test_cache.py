"""The cache file: written whole, proved when read, made again when damaged."""

from pathlib import Path

import pytest
import torch

from kindgene import files
from kindgene.data.cache import default_folder, read_or_make

IMAGES = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)


class Maker:
    """Makes the images and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        return IMAGES.clone()


def test_made_once_then_read(tmp_path: Path) -> None:
    make, file = Maker(), tmp_path / "new" / "images.safetensors"
    for _ in range(3):
        assert torch.equal(read_or_make(file, (2, 3, 4), make), IMAGES)
    assert make.calls == 1
    assert [entry.name for entry in file.parent.iterdir()] == ["images.safetensors"]


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, -1),  # one bit of one pixel: only the hash can tell
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff" * 100),
        lambda file: files.write_safetensors(file, {"images": IMAGES}),  # no hash
        lambda file: files.write_safetensors(file, {"other": IMAGES}, {"sha256": "00"}),
        lambda file: files.write_safetensors(file, {"images": IMAGES.float()}, {"sha256": "00"}),
    ],
)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    make, file = Maker(), tmp_path / "images.safetensors"
    read_or_make(file, (2, 3, 4), make)
    whole = file.read_bytes()
    damage(file)
    assert file.read_bytes() != whole
    assert torch.equal(read_or_make(file, (2, 3, 4), make), IMAGES)
    assert make.calls == 2
    assert file.read_bytes() == whole


def test_another_shape_is_made_again(tmp_path: Path) -> None:
    make, file = Maker(), tmp_path / "images.safetensors"
    read_or_make(file, (2, 3, 4), make)
    read_or_make(file, (3, 2, 4), make)
    assert make.calls == 2


def test_a_maker_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        read_or_make(tmp_path / "images.safetensors", (1,), fail)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot be written"):
        images = read_or_make(tmp_path / "file" / "images.safetensors", (2, 3, 4), Maker())
    assert torch.equal(images, IMAGES)


def test_the_default_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "kindgene"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_folder() == tmp_path / "home" / ".cache" / "kindgene"
    monkeypatch.setattr(Path, "home", classmethod(_homeless))
    with pytest.raises(ValueError, match="no home folder"):
        default_folder()


def _homeless(_: type[Path]) -> Path:
    raise RuntimeError("Could not determine home directory.")
