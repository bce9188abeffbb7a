"""Names of classes: user input, exact, never a path; and the file names made from them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

LONGEST_NAME = 200
TAILOR_FILE = re.compile(r"tailors/[0-9a-f]{2}/[a-z0-9-]{1,40}-[0-9a-f]{16}\.safetensors")


def check_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple. Raises ValueError for none, empty or overlong ones, duplicates, control characters.

    Any other text is a name, ``../../x`` and ``CON`` too: names are never paths. Names that differ only in
    case or Unicode form are different names.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"class names must be a list of names, got {names!r}")
    checked = tuple(names)
    if not checked:
        raise ValueError("no class was named; name at least one")
    seen, repeated = set(), {}
    for name in checked:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a class name must be a text that is not empty, got {name!r}")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"a class name has {len(name)} characters, at most {LONGEST_NAME} fit: {name[:40]!r}...")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise ValueError(f"class name {name!r} has a control character or half of a surrogate pair")
        if name in seen:
            repeated[name] = True
        seen.add(name)
    if repeated:
        raise ValueError(f"classes named more than once: {quoted(repeated)}")
    return checked


def known_names(classes: Collection[str], asked: Sequence[str]) -> tuple[str, ...]:
    """Checked names, all among `classes`. Raises ValueError suggesting the nearest for one that is not."""
    names = check_class_names(asked)
    for name in names:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=3) or list(classes)[:10]
            raise ValueError(f"no class {name!r} in this pool; nearest: {quoted(near) or 'none, it has no classes'}")
    return names


def quoted(names: Iterable[str], most: int = 10) -> str:
    """Names for a message: quoted, the first few."""
    every = list(names)
    more = f", and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(map(repr, every[:most])) + more


def tailor_file(names: Sequence[str], digest: str) -> str:
    """Path of a tailor's file inside the pool: a readable slug of its first class and its content's hash."""
    ascii_name = unicodedata.normalize("NFKD", names[0]).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")[:40] or "class"
    return f"tailors/{digest[:2]}/{slug}-{digest[:16]}.safetensors"
