"""Four sets far from glyphs, to transfer to: in the roles of the paper's CelebA-HQ, Hubble, MRI and Pokemon.

- **digits**: real handwriting, the 1,797 digits of scikit-learn, brought from 8x8 pixels to the size asked for;
- **stars**: star fields, galaxies, nebulae, 6 classes; - **phantoms**: MRI-like slices, 6 classes;
- **textures**: patterns that fill the image, 9 classes. These three are procedural.

Grey, 16x16 or 32x32. Image i of a class is a function of (seed, split, class, i) alone. Which digits belong to
which split is fixed: 60 % training, 20 % validation, 20 % test; the seed sets their order.

Shapes: N images, H height, W width.
"""

import difflib
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from kindgene.data import draws
from kindgene.data.arrays import ArrayDataset
from kindgene.data.canvas import Painter, paint
from kindgene.data.digits import load_digits
from kindgene.data.glyphs import PER_CLASS, SIZES, SPLITS, Split
from kindgene.data.phantoms import PHANTOMS
from kindgene.data.stars import STARS
from kindgene.data.textures import TEXTURES

Shift = Literal["digits", "phantoms", "stars", "textures"]

SHIFTS: tuple[Shift, ...] = get_args(Shift)

_PAINTERS: dict[Shift, Mapping[str, Painter]] = {"phantoms": PHANTOMS, "stars": STARS, "textures": TEXTURES}
_SPLIT_SEED = 0  # of the real digits: which belong to which split


def load_shift(
    name: Shift, split: Split = "train", size: int = 16, *, per_class: int | None = None, seed: int = 0
) -> ArrayDataset:
    """A shift set in [-1, 1]: float32 [N, 1, size, size], class by class.

    `per_class` is 200 for training, 20 for validation and 50 for testing if not given; of the real digits it
    is all there are (about 108, 36 and 36). Raises ValueError for other names, splits and sizes, and for more
    digits than there are.
    """
    if name not in SHIFTS:
        near = difflib.get_close_matches(str(name), SHIFTS, n=1) or SHIFTS
        raise ValueError(f"no shift set {name!r}; did you mean {' or '.join(map(repr, near))}?")
    if split not in SPLITS:
        raise ValueError(f"the split is {', '.join(map(repr, SPLITS[:-1]))} or {SPLITS[-1]!r}, got {split!r}")
    if size not in SIZES:
        raise ValueError(f"shift sets have {' or '.join(map(str, SIZES))} pixels a side, not {size!r}")
    if per_class is not None and per_class < 1:
        raise ValueError(f"{per_class} images a class were asked for; at least one is needed")
    if name == "digits":
        return _digits(split, size, per_class, seed)
    painters = _PAINTERS[name]
    count = PER_CLASS[split] if per_class is None else per_class
    pixels = [paint(painter, size, seed, f"{name}/{split}/{label}", count) for label, painter in painters.items()]
    images = torch.from_numpy(np.concatenate(pixels)).unsqueeze(1).float() / 127.5 - 1.0
    return ArrayDataset(images, torch.arange(len(painters)).repeat_interleave(count), tuple(painters))


def _digits(split: Split, size: int, per_class: int | None, seed: int) -> ArrayDataset:
    """Real digits, class by class, in an order drawn by the seed."""
    rest, test = load_digits().split(0.2, _SPLIT_SEED)
    train, validation = rest.split(0.25, _SPLIT_SEED)
    whole = {"train": train, "validation": validation, "test": test}[split]
    taken = []
    for label, name in enumerate(whole.class_names):
        members = torch.nonzero(whole.labels == label)[:, 0]
        if per_class is not None and per_class > len(members):
            raise ValueError(f"{per_class} images a class were asked for; {split} has {len(members)} of digit {name!r}")
        order = np.argsort(draws.words(seed, f"digits/{split}/{name}", len(members), 1)[:, 0], kind="stable")
        taken.append(members[torch.from_numpy(order)][:per_class])
    chosen = torch.cat(taken)
    # Cubic interpolation overshoots at a stroke's edge; what it adds is cut off.
    large = F.interpolate(whole.images[chosen], size=(size, size), mode="bicubic", align_corners=False)
    return ArrayDataset(large.clamp(-1.0, 1.0), whole.labels[chosen], whole.class_names)
