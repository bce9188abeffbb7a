"""Images in folders, one folder a class (the ImageFolder layout), cropped as ADM does.

```
path/
  cat/  a.jpg  b.png
  dog/  c.webp
```
The folders' names, sorted, are the classes. Nothing is left out in silence: whatever lies in a class folder
must be an image that can be read, or the error names it. Only names that begin with a dot (a file manager's
notes) and files beside the class folders that are no images (a readme, a licence) are passed over.

Shapes: N images, C channels, H height, W width.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps

from kindgene.data.arrays import ArrayDataset

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")
_MODE = {1: "L", 3: "RGB"}
_MODES_TAKEN = ("1", "L", "LA", "P", "RGB", "RGBA")
# What Pillow raises for a damaged file depends on where the damage lies.
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Pixels = npt.NDArray[np.uint8]


def load_folder(path: str | Path, size: int, channels: int = 3) -> ArrayDataset:
    """Read every image below `path`: float32 [N, channels, size, size] in [-1, 1], held in memory.

    Each is turned upright as its EXIF data say, reduced and centre-cropped to a square (`centre_crop`), and
    made grey (ITU-R 601 luma) for one channel or RGB for three. Raises ValueError, naming the file or folder,
    for a layout other than the one above, for classes without images, and for an image that is broken,
    animated, smaller than `size`, partly transparent, deeper than 8 bits, or in another colour space than
    grey or RGB.
    """
    if size < 1:
        raise ValueError(f"the image size is {size}; it must be at least 1 pixel")
    if channels not in _MODE:
        raise ValueError(f"images of {channels} channels cannot be made; ask for 1 (grey) or 3 (RGB)")
    files = _files_of_classes(Path(path))
    images = np.empty((sum(map(len, files.values())), channels, size, size), dtype=np.uint8)
    labels: list[int] = []
    for label, members in enumerate(files.values()):
        for file in members:
            images[len(labels)] = _read(file, size, channels)
            labels.append(label)
    # 0 to 255 becomes -1 to 1, both ends included.
    return ArrayDataset(torch.from_numpy(images).float() / 127.5 - 1.0, torch.tensor(labels), tuple(files))


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Reduce to a short side of `size`, then cut the middle square, as ADM (Dhariwal and Nichol 2021).

    Halving with a box filter while the short side is at least twice `size`, then one bicubic step, keeps a
    strong reduction free of aliasing. FID compares with figures published for this preprocessing only if it
    is the same.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _files_of_classes(root: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder that holds one folder of images a class")
    entries = _visible(root)
    loose = [entry for entry in entries if not entry.is_dir() and entry.suffix.lower() in _SUFFIXES]
    if loose:
        raise ValueError(f"{loose[0]} lies in no class folder; move it to one")
    files = {entry.name: _visible(entry) for entry in entries if entry.is_dir()}
    if not files:
        raise ValueError(f"{root} holds no class folders; make one for each class and put its images there")
    for name, members in files.items():
        if not members:
            raise ValueError(f"{root / name} holds no images; add some or remove the folder")
        for file in members:
            if file.is_dir():
                raise ValueError(f"{file} is a folder within a class; a class folder holds only images")
            if file.suffix.lower() not in _SUFFIXES:
                raise ValueError(f"{file} is not one of {', '.join(_SUFFIXES)}; convert it or move it away")
    return files


def _visible(folder: Path) -> list[Path]:
    """What lies in `folder`, sorted by name, without names that begin with a dot."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _read(file: Path, size: int, channels: int) -> Pixels:
    """One image as uint8 [C, size, size]."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            reason = _unsuitable(image)
            upright = ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise ValueError(f"{file} cannot be read as JPEG, PNG or WebP ({error}); replace or remove it") from error
    if reason is not None:
        raise ValueError(f"{file} {reason}")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        if upright.getchannel("A").getextrema() != (255, 255):
            raise ValueError(f"{file} is partly transparent; flatten it onto a background")
    if upright.mode != "L":
        upright = upright.convert("RGB")
    if min(upright.size) < size:
        raise ValueError(
            f"{file} is {upright.width}x{upright.height} pixels, smaller than {size}; "
            f"ask for a smaller size or remove it"
        )
    pixels = np.asarray(centre_crop(upright.convert(_MODE[channels]), size))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def _unsuitable(image: ImageFile.ImageFile) -> str | None:
    """Why an opened file is refused, or None. Loads nothing: loading hides how deep the colours were."""
    if image.mode.startswith("I") or any(";16" in str(tile.args) for tile in image.tile):
        return "is deeper than 8 bits a channel; scale it to 8 bits, so that the range is your choice"
    if image.mode not in _MODES_TAKEN:
        return f"has the colour mode {image.mode}; convert it to grey or RGB"
    if _is_animated(image):
        return "is animated; save the frame that is meant as a file of its own"
    return None


def _is_animated(image: ImageFile.ImageFile) -> bool:
    if image.format == "MPO":  # a camera's JPEG with further views; the first is the picture
        return False
    try:
        image.seek(1)
    except EOFError:
        return False
    return True
