"""Images in folders, one folder a class (the ImageFolder layout), cropped as ADM does.

```
path/
  cat/  a.jpg  b.png
  dog/  c.webp
  d.jpg
```
The folders' names, sorted, are the classes; an image beside them (``d.jpg``) is one without class. A folder of
images alone is one class, named after the folder. Nothing is left out in silence: whatever lies in a class folder
must be an image that can be used (`kindgene.data.images`), or it is skipped and named. Only names that begin with a
dot (a file manager's notes) and files beside the class folders that are no images (a readme) are passed over.

Shapes: N images, C channels, S pixels a side.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kindgene.data.classless import tell_classless
from kindgene.data.dataset import Dataset
from kindgene.data.encoded import Check, EncodedDataset, look_through
from kindgene.data.images import check_size
from kindgene.data.labels import check_known, check_names
from kindgene.data.skipped import Skipped, refuse
from kindgene.progress import Progress

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderDataset(EncodedDataset):
    """Images of a folder, decoded on demand; `load_folder` makes it.

    root: the folder, absolute; files: names below it as the file system has them, bytes [N] (one array, so that a
    million of them cost a process little); lengths: of the files, in bytes, int64 [N].
    """

    root: Path
    files: npt.NDArray[np.bytes_]
    lengths: npt.NDArray[np.int64]

    def source(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def name(self, index: int) -> str:
        return str(self.source(index))

    def where(self, kept: Tensor) -> Self:
        """The images where `kept` (bool [N]) is true, all classes kept."""
        mask = kept.numpy()
        return replace(self, labels=self.labels[kept], files=self.files[mask], lengths=self.lengths[mask])

    def fingerprint(self) -> dict[str, Any]:
        """As of any `Dataset`, but quick: the files' names and lengths are hashed, not what they hold."""
        files = hashlib.sha256()
        for file in self.files.tolist():
            files.update(file + b"\0")
        files.update(self.lengths.tobytes())
        return {
            "images": len(self),
            "class_names": list(self.class_names),
            "flip": self.flip,
            "labels_sha256": hashlib.sha256(self.labels.numpy().tobytes()).hexdigest(),
            "files_sha256": files.hexdigest(),
            "shape": list(self.shape),
        }


def load_folder(
    path: str | Path,
    size: int,
    channels: int = 3,
    *,
    classes: Sequence[str] | None = None,
    strict: bool = False,
    flip: bool = False,
    min_side: int | None = None,
    in_memory: bool | None = None,
    check: Check = "headers",
    progress: Progress | None = None,
) -> Dataset:
    """The images below `path`, [N, channels, size, size] in [-1, 1] when drawn: an `ArrayDataset` or a `FolderDataset`.

    Each is turned upright as its EXIF data say, reduced and centre-cropped to a square
    (`kindgene.data.images.centre_crop`), and made grey (ITU-R 601 luma) for one channel or RGB for three. `classes`:
    only these, in this order, without those that have no class; other folders are not looked into. `flip`: training
    mirrors every other one.

    Files that cannot be used are left out, named in one warning and listed in `skipped`; of `strict` the first
    raises ValueError. They are sought before anything else is done: all of them where the images are held in
    memory or of ``check="full"``, else those that the headers tell of (`kindgene.data.encoded`). Images are held in
    memory where they take less than 1 GiB as float32 (N * C * S * S * 4 bytes), otherwise decoded for each batch;
    `in_memory` True or False decides. `min_side`: what is smaller counts as unfit; None: `size`; 1: all are enlarged,
    as in ADM's data. `progress` hears of long searches.

    Raises ValueError, naming the folder, for a layout other than the one above and for a class without a single
    image that can be used.
    """
    check_size(size, channels)
    root = Path(path).absolute()
    class_names, found, unfit = _walk(root, classes)
    if strict:
        refuse(unfit)
    _refuse_empty(root, class_names, found, unfit)
    candidates = FolderDataset(
        labels=torch.tensor([label for label, members in enumerate(found) for _ in members.files]),
        class_names=class_names,
        size=size,
        channels=channels,
        flip=flip,
        min_side=size if min_side is None else min_side,
        root=root,
        files=np.array([file for members in found for file in members.files]),
        lengths=np.array([length for members in found for length in members.lengths], dtype=np.int64),
    )
    dataset = look_through(
        candidates, unfit, str(root), strict=strict, in_memory=in_memory, check=check, progress=progress
    )
    tell_classless(dataset.labels, class_names, str(root), "lie in no class folder")
    return dataset


def count_images(folder: Path) -> int:
    """How many image files lie in a folder, by their suffix."""
    return sum(_is_image(entry.name) and not entry.is_dir() for entry in _visible(folder))


@dataclass(frozen=True)
class _Members:
    """Image files of a class: names below the root, and lengths in bytes."""

    files: list[bytes] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, entry: os.DirEntry[str], folder: str) -> None:
        self.files.append(os.fsencode(os.path.join(folder, entry.name)))
        try:
            self.lengths.append(entry.stat().st_size)
        except FileNotFoundError:  # a link to nowhere, which is found out when it is read
            self.lengths.append(0)


def _walk(root: Path, classes: Sequence[str] | None) -> tuple[tuple[str, ...], list[_Members], list[Skipped]]:
    """Class names, the images of each class and, last, of none; and what in class folders is no image file."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder that holds one folder of images a class")
    entries = _visible(root)
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    loose = _Members()
    for entry in entries:
        if entry.name not in folders and _is_image(entry.name):
            loose.add(entry, "")
    if not folders and not loose.files:
        raise ValueError(f"{root} holds no class folders; make one for each class and put its images there")
    names = tuple(folders) or (root.resolve().name or "images",)
    if classes is not None:
        check_names(classes)
        check_known(classes, names, str(root))
        names = tuple(classes)
    if not folders:
        return names, [loose, _Members()], []
    if classes is not None:
        loose = _Members()
    unfit: list[Skipped] = []
    found = []
    for name in names:
        found.append(_Members())
        for entry in _visible(folders[name].path):
            if entry.is_dir():
                reason, advice = "is a folder within a class", "a class folder holds only images"
                unfit.append(Skipped(entry.path, "nested folder", reason, advice))
            elif not _is_image(entry.name):
                reason, advice = f"is not one of {', '.join(_SUFFIXES)}", "convert it or move it away"
                unfit.append(Skipped(entry.path, "other suffix", reason, advice))
            else:
                found[-1].add(entry, name)
    return names, [*found, loose], unfit


def _refuse_empty(root: Path, class_names: Sequence[str], found: Sequence[_Members], unfit: Sequence[Skipped]) -> None:
    """Raises ValueError for a class folder without image files."""
    for name, members in zip(class_names, found[:-1], strict=True):  # the last are of no class
        if members.files:
            continue
        first = next((each for each in unfit if Path(each.path).parent == root / name), None)
        if first is None:
            raise ValueError(f"{root / name} holds no images; add some or remove the folder")
        deeper = f"; where {root / name} holds the class folders, give that" if first.kind == "nested folder" else ""
        raise ValueError(f"{root / name} holds no image that can be used: {first}{deeper}")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in `folder`, sorted by name, without names that begin with a dot."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
