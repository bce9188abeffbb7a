"""Class names and labels: what they must be, and how a data set is divided by them.

A label is the position of a class's name; ``len(class_names)`` is that of an image without class.

Shapes: N images.
"""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError unless the names are distinct, non-empty strings, at least one."""
    if not names:
        raise ValueError("no class names; name at least one class")
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"class names must be non-empty strings; found {listed(names)}")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"class {listed(repeated)} is named more than once; name each class once")


def check_known(names: Sequence[str], class_names: Sequence[str], origin: str) -> None:
    """Raises ValueError for a name that is not among the class names of `origin`, with those nearest to it."""
    for name in names:
        if name not in class_names:
            near = difflib.get_close_matches(str(name), class_names, n=3) or class_names[:10]
            raise ValueError(f"no class {name!r} in {origin}; nearest: {listed(near)}")


def check_labels(labels: Tensor, count: int, class_names: Sequence[str]) -> None:
    """Raises ValueError unless the labels are int64 [count], each within 0 to ``len(class_names)``."""
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"expected int64 of shape ({count},), one for each image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > len(class_names):
        raise ValueError(
            f"labels reach from {low} to {high}; with {len(class_names)} class names they must lie in "
            f"0 to {len(class_names) - 1}, or be {len(class_names)} for an image without class"
        )


def check_indices(indices: Tensor, count: int) -> None:
    """Raises ValueError unless the indices are int64 [B], each within 0 to ``count - 1``."""
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise ValueError(f"indices are {indices.dtype} of shape {tuple(indices.shape)}; expected int64 [B]")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise ValueError(
            f"indices reach from {int(indices.min())} to {int(indices.max())}, "
            f"but the data set has the images 0 to {count - 1}"
        )


def chosen(labels: Tensor, class_names: Sequence[str], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which images are of the classes `names` (bool [N]), and the labels of those in the order of `names`.

    Images without class are not among them. Raises ValueError for an unknown or repeated name, no names at
    all, or classes that have no images.
    """
    if isinstance(names, str):
        raise ValueError(f"names is the single string {names!r}; give a list of class names, as in [{names!r}]")
    check_names(names)
    counts = dict(zip(class_names, _counts(labels, class_names), strict=True))
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise ValueError(f"unknown class {listed(unknown)}; the data set has {listed(class_names)}")
    empty = [name for name in names if counts[name] == 0]
    if empty:
        raise ValueError(f"no images of class {listed(empty)}; leave it out or add images")
    position = {name: label for label, name in enumerate(names)}
    renumbered = torch.tensor([*(position.get(name, -1) for name in class_names), -1])[labels]
    kept = renumbered >= 0
    return kept, renumbered[kept]


def held_out(labels: Tensor, class_names: Sequence[str], fraction: float, seed: int) -> Tensor:
    """Which images to hold out, bool [N]: `fraction` of every class, at least one image of each.

    That depends on the seed, the class's name and its images alone, so that a class is divided alike in the
    whole data set and in any subset of it: nothing held out leaks into another's training. Images without
    class stay. Raises ValueError for a fraction outside (0, 1) and for a class of fewer than two images.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"the held-out fraction is {fraction}; it must lie between 0 and 1, both excluded")
    if not 0 <= seed < 2**64:
        raise ValueError(f"the seed is {seed}; it must be at least 0 and below 2**64")
    mask = torch.zeros(len(labels), dtype=torch.bool)
    counts = _counts(labels, class_names)
    by_class = torch.argsort(labels, stable=True)[: sum(counts)].split(counts)
    for members, name in zip(by_class, class_names, strict=True):
        count = len(members)
        if count < 2:
            raise ValueError(f"class {name!r} has {count} images; a split needs two of each class")
        share = min(max(round(count * fraction), 1), count - 1)
        mask[members[_order(seed, name, count)[:share]]] = True
    return mask


def named_labels(values: Sequence[object], names: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as others store them, one a value, as int64 [N] with class names.

    A value is an integer, the position in `names` or, of None, a name itself; or a text. Of None the classes are the
    values that occur, sorted. None and the integer -1 (with `names` their number too) are images without class. Raises
    ValueError for values of other types or of several, for one that has no name, and where no value names a class.
    """
    found = {value for value in values if value is not None}
    kinds = {str if isinstance(value, str) else int if isinstance(value, int) else type(value) for value in found}
    if len(kinds) > 1 or not kinds <= {str, int}:
        raise ValueError(
            f"labels must be integers or texts, all of one kind; found {listed(sorted(map(str, found)), 3)}"
        )
    classless: set[object] = {None, -1}
    wrong: list[object] = [value for value in found if isinstance(value, int) and value < -1]
    position: dict[object, int]
    if names is None:
        present = sorted(found - classless)  # type: ignore[type-var]  # of one kind, as just seen
        position = {value: label for label, value in enumerate(present)}
        names = [str(value) for value in present]
    elif kinds == {str}:
        position = {name: label for label, name in enumerate(names)}
    else:
        position = {label: label for label in range(len(names))}
        classless.add(len(names))
    position.update(dict.fromkeys(classless, len(names)))
    wrong += [value for value in found if value not in position]
    if wrong:
        raise ValueError(f"label {wrong[0]!r} has no name; there are {len(names)} class names")
    if not names:
        raise ValueError("no image has a class; at least one class is needed")
    check_names(names)
    return torch.tensor([position[value] for value in values], dtype=torch.int64), tuple(names)


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Names for an error message: quoted, and cut where there are too many to read."""
    quoted = [repr(name) for name in names]
    rest = len(quoted) - limit
    return ", ".join(quoted[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _counts(labels: Tensor, class_names: Sequence[str]) -> list[int]:
    """How many images each class has, in the order of the names."""
    counts: list[int] = torch.bincount(labels, minlength=len(class_names))[: len(class_names)].tolist()
    return counts


def _order(seed: int, name: str, count: int) -> Tensor:
    """A random order of `count` images, long [count]: Philox's raw words, sorted."""
    stream = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)
    return torch.from_numpy(np.argsort(words, kind="stable"))
