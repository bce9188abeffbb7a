"""Glyphs: 611 classes of Unicode characters in twelve faces, drawn with random face, size, shift and rotation.

A class is a superclass of look-alikes (`superclasses.py`), 150 for pre-training ("base") and 461 novel. An image
of it is a random member in a random face, its longer side 60 to 85 % of the image, turned by up to 10 degrees,
and moved by up to 10 % of the image's side, never beyond the edge: grey, bright on dark, as scikit-learn's
digits. Every number here is our own choice.

Image i of a class is a function of (seed, split, class, i) alone: fewer or more images, or other classes
beside it, do not change it, and the three splits are drawn from different random streams.

Shapes: N images, H height, W width.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import PIL
import torch
from PIL import Image

from kindgene.data import draws
from kindgene.data.arrays import ArrayDataset
from kindgene.data.cache import default_folder, read_or_make
from kindgene.data.faces import FACES, face_digests, freetype_version, glyph_mask, place
from kindgene.data.superclasses import Superclass, superclasses
from kindgene.files import StrPath

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)
SIZES = (16, 32)
PER_CLASS: dict[Split, int] = {"train": 200, "validation": 20, "test": 50}

_VERSION = 2  # of the renderings; raised whenever an image changes
_EXTENT = (0.60, 0.85)
_DEGREES = 10.0
_FURTHEST = 0.10


def load_glyphs(
    split: Split = "train",
    classes: Literal["base", "novel"] | Sequence[str] = "base",
    size: int = 16,
    *,
    per_class: int | None = None,
    seed: int = 0,
    cache: StrPath | None = None,
) -> ArrayDataset:
    """Glyphs in [-1, 1]: float32 [N, 1, size, size], class by class.

    `classes` is "base" (150), "novel" (461), or names of superclasses, whose order the labels follow; `size` is
    16 or 32; `per_class` is 200 for training, 20 for validation and 50 for testing if not given. Images are
    drawn once and kept in the folder `cache` (by default the user's cache folder), a byte a pixel. Raises
    ValueError for anything else than that, suggesting the nearest name for a class that there is not.
    """
    chosen = _chosen(classes)
    count = _checked_count(split, size, per_class)
    file = Path(default_folder() if cache is None else cache) / _file_name(chosen, split, size, count, seed)
    images = read_or_make(
        file, (len(chosen) * count, size, size), lambda: render_glyphs(chosen, split, size, count, seed)
    )
    labels = torch.arange(len(chosen)).repeat_interleave(count)
    names = tuple(superclass.name for superclass in chosen)
    return ArrayDataset(images.unsqueeze(1).float() / 127.5 - 1.0, labels, names)


def render_glyphs(chosen: Sequence[Superclass], split: Split, size: int, per_class: int, seed: int) -> torch.Tensor:
    """The images themselves, class by class, without a cache: uint8 [N, H, W], ink 255 on 0."""
    pixels = bytearray()
    for superclass in chosen:
        pixels += _class_pixels(superclass, split, size, per_class, seed)
    return torch.frombuffer(pixels, dtype=torch.uint8).reshape(-1, size, size)


def _class_pixels(superclass: Superclass, split: Split, size: int, count: int, seed: int) -> bytes:
    """`count` images of one class as bytes, one image after the other."""
    masks: dict[tuple[str, int], Image.Image] = {}  # of this class alone, so that memory stays small
    drawn = draws.uniform(seed, f"glyphs/{split}/{superclass.name}", count, 6).tolist()
    images = []
    for member_at, face_at, size_at, turn_at, right, down in drawn:
        member = superclass.members[int(member_at * len(superclass.members))]
        face = FACES[int(face_at * len(FACES))]
        mask = masks.get((face, member))
        if mask is None:
            mask = masks[face, member] = glyph_mask(face, member)
        extent = _EXTENT[0] + size_at * (_EXTENT[1] - _EXTENT[0])
        slack = (2 * right - 1, 2 * down - 1)
        images.append(place(mask, size, extent, (2 * turn_at - 1) * _DEGREES, slack, _FURTHEST).tobytes())
    return b"".join(images)


def _chosen(classes: str | Sequence[str]) -> tuple[Superclass, ...]:
    """The superclasses asked for, in their order."""
    if isinstance(classes, str):
        if classes not in ("base", "novel"):
            raise ValueError(f"classes are 'base', 'novel' or a list of names, got {classes!r}")
        return tuple(superclass for superclass in superclasses() if superclass.group == classes)
    by_name = {superclass.name: superclass for superclass in superclasses()}
    for name in classes:
        if name not in by_name:
            near = difflib.get_close_matches(str(name).lower(), by_name, n=3) or ["A", "b", "1"]
            raise ValueError(f"no glyph class {name!r}; nearest: {', '.join(map(repr, near))}")
    if not classes:
        raise ValueError("no class was named; name at least one, or ask for 'base' or 'novel'")
    repeated = [name for name in by_name if list(classes).count(name) > 1]
    if repeated:
        raise ValueError(f"glyph class {repeated[0]!r} is named more than once")
    return tuple(by_name[name] for name in classes)


def _checked_count(split: Split, size: int, per_class: int | None) -> int:
    if split not in SPLITS:
        raise ValueError(f"the split is {', '.join(map(repr, SPLITS[:-1]))} or {SPLITS[-1]!r}, got {split!r}")
    if size not in SIZES:
        raise ValueError(f"glyphs are drawn with {' or '.join(map(str, SIZES))} pixels a side, not {size!r}")
    count = PER_CLASS[split] if per_class is None else per_class
    if count < 1:
        raise ValueError(f"{count} images a class were asked for; at least one is needed")
    return count


def _file_name(chosen: Sequence[Superclass], split: Split, size: int, count: int, seed: int) -> str:
    """Names the cache file by all that its images depend on."""
    identity = {
        "version": _VERSION,
        "pillow": PIL.__version__,
        "freetype": freetype_version(),
        "faces": face_digests(),
        "classes": [[superclass.name, *superclass.members] for superclass in chosen],
        "split": split,
        "size": size,
        "per_class": count,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"glyphs-{split}-{size}-{digest[:16]}.safetensors"
