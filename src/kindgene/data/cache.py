"""Images made once and kept in a file that proves itself.

The file is a whole safetensors file or not there at all (see `kindgene.files`), and it carries the hash of its
images: a damaged one is found out and made again. What the images depend on belongs in the file's name, so a
file of that name never holds others.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from kindgene import files

_IMAGES = "images"
_DIGEST = "sha256"


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/kindgene``, else ``~/.cache/kindgene``. What lies there may be deleted at any time.

    Raises ValueError for a user without a home folder.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):  # the specification has relative paths ignored
        return Path(configured) / "kindgene"
    try:
        return Path.home() / ".cache" / "kindgene"
    except RuntimeError as error:
        raise ValueError("this user has no home folder to keep images in; name a cache folder") from error


def read_or_make(file: Path, shape: tuple[int, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The images of `file`, uint8 of `shape`; made by `make` and written where it is missing or damaged.

    Warns where the folder cannot be written: the images are as good, but are made again each time.
    """
    kept = _read(file, shape)
    if kept is not None:
        return kept
    images = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_safetensors(file, {_IMAGES: images}, {_DIGEST: _digest(images)})
    except OSError as error:
        warnings.warn(
            f"{file} cannot be written ({error.strerror}), so these images are made anew each time; "
            "name another cache folder",
            stacklevel=3,
        )
    return images


def _read(file: Path, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The images of a file; None where it is missing, damaged or holds something else."""
    if not file.is_file():
        return None
    try:
        images = files.read_safetensors(file).get(_IMAGES)
        digest = files.read_metadata(file).get(_DIGEST)
    except ValueError:
        return None
    if images is None or images.dtype != torch.uint8 or images.shape != shape or _digest(images) != digest:
        return None
    return images


def _digest(images: torch.Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()
