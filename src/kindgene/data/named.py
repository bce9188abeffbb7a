"""Data sets by name, as a command line gives them: what comes with the package, nothing to download.

| name | classes | pixels |
|---|---|---|
| ``digits`` | 10 real digits, undivided | 8 |
| ``glyphs``, ``glyphs:novel`` | the 150 base, the 461 novel superclasses | 16 or 32 |
| ``shift:digits``, ``shift:phantoms``, ``shift:stars``, ``shift:textures`` | 10, 6, 6, 9 | 16 or 32 |
"""

import difflib
from collections.abc import Sequence

from kindgene.data.arrays import ArrayDataset
from kindgene.data.digits import load_digits
from kindgene.data.glyphs import Split, load_glyphs
from kindgene.data.shifts import SHIFTS, load_shift
from kindgene.data.superclasses import Group, superclasses
from kindgene.files import StrPath

NAMES = ("digits", "glyphs", "glyphs:novel", *(f"shift:{shift}" for shift in SHIFTS))

_DIGITS_SIZE = 8
_SIZE = 16


def load_named(
    name: str,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    split: Split = "train",
    *,
    cache: StrPath | None = None,
) -> ArrayDataset:
    """The data set `name`, one of `NAMES`: images [N, 1, size, size] in [-1, 1], of `classes` in their order.

    Of `size` None, digits have 8 pixels a side and all others 16; `classes` None are all; `cache` is the folder for
    rendered glyphs. Raises ValueError for an unknown name, suggesting the nearest, for a size or a class
    that the set does not have, and for a split of ``digits``, which come undivided.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(str(name).lower(), NAMES, n=2) or NAMES
        raise ValueError(f"no data set {name!r}; nearest: {', '.join(map(repr, near))}")
    if isinstance(classes, str):
        raise ValueError(f"classes is the single string {classes!r}; give a list of names, as in [{classes!r}]")
    if name == "digits":
        if size not in (None, _DIGITS_SIZE):
            raise ValueError(f"digits have 8 pixels a side, not {size}; 'shift:digits' has them with 16 or 32")
        if split != "train":
            raise ValueError(f"digits come undivided, without a split {split!r}; 'shift:digits' is divided")
        return _part(name, load_digits(), classes)
    if name.startswith("shift:"):
        shift = next(shift for shift in SHIFTS if name == f"shift:{shift}")
        return _part(name, load_shift(shift, split, _SIZE if size is None else size), classes)
    group: Group = "novel" if name == "glyphs:novel" else "base"
    if classes is not None:
        _check_group(classes, group)
    return load_glyphs(split, group if classes is None else classes, _SIZE if size is None else size, cache=cache)


def _part(name: str, whole: ArrayDataset, classes: Sequence[str] | None) -> ArrayDataset:
    if classes is None:
        return whole
    for asked in classes:
        if asked not in whole.class_names:
            near = difflib.get_close_matches(str(asked).lower(), whole.class_names, n=1) or whole.class_names
            raise ValueError(f"no class {asked!r} in {name}; nearest: {', '.join(map(repr, near))}")
    return whole.subset(classes)


def _check_group(classes: Sequence[str], group: Group) -> None:
    """Refuses a class of the other group: a base class must not be among the novel, nor the other way round."""
    groups = {superclass.name: superclass.group for superclass in superclasses()}
    for name in classes:
        if groups.get(name, group) != group:
            other = "glyphs:novel" if group == "base" else "glyphs"
            raise ValueError(f"glyph class {name!r} is not a {group} class; the data set {other!r} has it")
