"""The 611 superclasses of the glyphs: look-alikes merged by measured similarity, in a versioned list.

`superclasses.json`, beside this file, is the list; ``python -m kindgene.data.superclasses`` makes it again, the
same byte for byte with the same faces and the same FreeType. The numbers 611, 150 and 461 are the protocol of
the paper, which merged ImageNet's classes along WordNet; the merging of glyphs is our own: agglomerative
clustering with average linkage on the similarity of `similarity.py`, cut where 611 clusters are left.

A superclass is named by its first member that is an ASCII letter or digit ("A"), else by the Unicode name of
its first member in lower case ("greek small letter beta"): names without a comma, that can be typed.
"""

import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.cluster import AgglomerativeClustering

from kindgene import files
from kindgene.data import draws

Group = Literal["base", "novel"]

LIST_FILE = Path(__file__).with_name("superclasses.json")
VERSION = 2  # of the list; raised whenever a superclass changes
COUNT = 611
BASE_COUNT = 150
SEED = 0  # of the draw of the base classes
FEWEST_MEMBERS = 2  # of a base class
MOST_ALIKE = 0.81  # two base classes, on the mean over their members; those left unmerged reach 0.88


@dataclass(frozen=True)
class Superclass:
    """Code points that look alike. `group` says whether it is for pre-training (base) or for transfer (novel)."""

    name: str
    group: Group
    members: tuple[int, ...]


@cache
def superclasses() -> tuple[Superclass, ...]:
    """All 611, ordered by the code point of the member that gives the name."""
    return parse(files.read_json(LIST_FILE))


def names(group: Group) -> tuple[str, ...]:
    """The names of the 150 base or the 461 novel superclasses, in the order of the list."""
    return tuple(superclass.name for superclass in superclasses() if superclass.group == group)


def parse(document: Mapping[str, Any]) -> tuple[Superclass, ...]:
    """The superclasses of a list as read from its file. Raises ValueError for a version that is not ours."""
    if document["version"] != VERSION:
        raise ValueError(f"the list of superclasses has version {document['version']}; this code reads {VERSION}")
    return tuple(
        Superclass(row["name"], row["group"], tuple(int(member, 16) for member in row["members"]))
        for row in document["superclasses"]
    )


def build(
    code_points: Sequence[int], similar_NN: npt.NDArray[np.float64], count: int = COUNT, base_count: int = BASE_COUNT
) -> tuple[Superclass, ...]:
    """Merge `code_points` into `count` superclasses and draw `base_count` of them for pre-training.

    Base classes are taken in an order drawn by `SEED`, those with at least two members, so that each is more
    than one glyph, and none that is too much like one taken before, so that they can be told apart. Raises
    ValueError where fewer than `base_count` are left.
    """
    clusters = merge(code_points, similar_NN, count)
    order = sorted(clusters, key=lambda members: _first(members))
    named = {name_of(members): members for members in order}
    base = set(_base(named, dict(zip(code_points, range(len(code_points)), strict=True)), similar_NN)[:base_count])
    if len(base) < base_count:
        raise ValueError(f"{base_count} base classes are asked for, but only {len(base)} are fit to be one")
    return tuple(
        Superclass(name, "base" if name in base else "novel", tuple(members)) for name, members in named.items()
    )


def _base(
    named: Mapping[str, Sequence[int]], place: Mapping[int, int], similar_NN: npt.NDArray[np.float64]
) -> list[str]:
    """The names of all that can be base classes together, in the order drawn."""
    eligible = [name for name, members in named.items() if len(members) >= FEWEST_MEMBERS]
    drawn = {name: int(draws.words(SEED, f"superclasses/base/{name}", 1, 1)[0, 0]) for name in eligible}
    rows = {name: [place[member] for member in named[name]] for name in eligible}
    taken: list[str] = []
    for name in sorted(eligible, key=drawn.__getitem__):
        if all(similar_NN[np.ix_(rows[name], rows[other])].mean() <= MOST_ALIKE for other in taken):
            taken.append(name)
    return taken


def merge(code_points: Sequence[int], similar_NN: npt.NDArray[np.float64], count: int) -> list[list[int]]:
    """Clusters of look-alikes, each ascending.

    Two clusters are as alike as their members are on average; the most alike merge until `count` are left.
    Raises ValueError unless 0 < `count` <= N.
    """
    if not 0 < count <= len(code_points):
        raise ValueError(f"{len(code_points)} glyphs cannot be merged into {count} superclasses")
    if count == len(code_points):
        return [[point] for point in code_points]
    clustering = AgglomerativeClustering(n_clusters=count, metric="precomputed", linkage="average")
    labels = clustering.fit_predict(1.0 - similar_NN)
    clusters: list[list[int]] = [[] for _ in range(count)]
    for label, point in sorted(zip(labels.tolist(), code_points, strict=True)):
        clusters[label].append(point)
    return clusters


def name_of(members: Sequence[int]) -> str:
    """The name of a superclass with these members."""
    first = chr(_first(members))
    return first if _is_typed(first) else unicodedata.name(first).lower()


def as_text(rows: Sequence[Superclass], faces: Mapping[str, str], freetype: str) -> str:
    """The list as the text of its JSON file: one superclass a line.

    With it stand the faces it was measured on, with their hashes, and the version of FreeType that drew them.
    """
    head = json.dumps({"version": VERSION, "freetype": freetype, "faces": dict(faces)}, indent=2).removesuffix("\n}")
    lines = [
        json.dumps({"name": row.name, "group": row.group, "members": [f"{member:04x}" for member in row.members]})
        for row in rows
    ]
    return head + ',\n  "superclasses": [\n    ' + ",\n    ".join(lines) + "\n  ]\n}\n"


def _first(members: Sequence[int]) -> int:
    return min(members, key=lambda point: (not _is_typed(chr(point)), point))


def _is_typed(character: str) -> bool:
    return character.isascii() and character.isalnum()


def main() -> None:
    """Measure, merge and write the list anew: about 20 s on one core."""
    from kindgene.data.faces import drawn_code_points, face_digests, freetype_version
    from kindgene.data.similarity import similarities

    code_points = drawn_code_points()
    rows = build(code_points, similarities(code_points))
    text = as_text(rows, face_digests(), freetype_version())
    changed = not LIST_FILE.exists() or LIST_FILE.read_text(encoding="utf-8") != text
    files.write_bytes(LIST_FILE, text.encode())
    sys.stdout.write(f"{LIST_FILE}: {len(rows)} superclasses, {'changed' if changed else 'as before'}\n")


if __name__ == "__main__":
    main()
