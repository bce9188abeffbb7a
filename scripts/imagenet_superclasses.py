"""Makes src/kindgene/data/imagenet_superclasses.json: ImageNet-1K's classes, merged along WordNet to 611.

    python scripts/imagenet_superclasses.py --wordnet DIR [--synsets FILE]

DIR is the dict folder of WordNet 3.0 (it holds data.noun; Debian: package wordnet-base, /usr/share/wordnet). FILE names
ImageNet's 1,000 synsets, one a line; without it those of the present list are taken. The same WordNet gives the same
file, byte for byte. The rule and the split are ours; docs/imagenet.md tells them.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kindgene import files

TARGET = Path(__file__).parents[1] / "src" / "kindgene" / "data" / "imagenet_superclasses.json"
VERSION = 1  # of the list; raised whenever a superclass changes
COUNT, BASE_COUNT = 611, 150
MOST_MEMBERS = 10
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Synset:
    """A noun of WordNet: its words, the most usual first, and the first of its hypernyms."""

    names: tuple[str, ...]
    parent: str | None


def read_wordnet(folder: Path) -> tuple[dict[str, Synset], list[str]]:
    """All nouns by id ("n" and the offset), and the lines of the licence that stands above them.

    A line of data.noun (manual page wndb(5WN)): offset, file, type, number of words (hexadecimal), word and sense
    pairs, number of pointers, then four fields a pointer: symbol (@ hypernym, @i instance), offset, type, positions.
    """
    nouns, licence = {}, []
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            licence.append(re.sub(r"^ +\d+ ?", "", line).rstrip())
            continue
        fields = line.partition(" | ")[0].split()
        words = int(fields[3], 16)
        rest = fields[4 + 2 * words :]
        pointers = [rest[1 + 4 * place : 5 + 4 * place] for place in range(int(rest[0]))]
        parents = [f"n{offset}" for symbol, offset, kind, _ in pointers if symbol in ("@", "@i") and kind == "n"]
        names = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * words : 2])
        nouns[f"n{fields[0]}"] = Synset(names, parents[0] if parents else None)
    return nouns, licence


def path_of(wnid: str, nouns: Mapping[str, Synset]) -> tuple[str, ...]:
    """The way from the root to the parent of a noun, along first hypernyms."""
    path: list[str] = []
    parent = nouns[wnid].parent
    while parent is not None:
        path.insert(0, parent)
        parent = nouns[parent].parent
    return tuple(path)


def merge(paths: Mapping[str, Sequence[str]], count: int = COUNT, most: int = MOST_MEMBERS) -> dict[str, list[str]]:
    """Classes to `count` clusters: {node of the tree: its classes}, a cluster being all the classes below a node.

    `paths`: class -> nodes from the root to its parent. Two classes are alike as Wu and Palmer (1994) have it, here by
    the lowest node above both, at depth d (root: 1), and the deeper class, at depth e: d / e. Nodes are taken from the
    one whose least similar classes are most alike, those of more than `most` classes and those that would leave
    fewer than `count` clusters passed over; ties go to the one of fewest classes, then of the lowest id.
    """
    below: dict[str, list[str]] = {}
    depth: dict[str, int] = {}
    for wnid in sorted(paths):
        for place, node in enumerate(paths[wnid]):
            below.setdefault(node, []).append(wnid)
            depth[node] = place + 1
    deepest = {node: max(len(paths[wnid]) + 1 for wnid in members) for node, members in below.items()}
    cluster = {wnid: wnid for wnid in paths}
    left = len(paths)
    for node in sorted(below, key=lambda node: (-depth[node] / deepest[node], len(below[node]), node)):
        joined = {cluster[wnid] for wnid in below[node]}
        if len(joined) < 2 or len(below[node]) > most or left - len(joined) + 1 < count:
            continue
        cluster.update(dict.fromkeys(below[node], node))
        left -= len(joined) - 1
    if left != count:
        raise ValueError(f"merging ends at {left} clusters, not at {count}")
    clusters: dict[str, list[str]] = {}
    for wnid in sorted(cluster):
        clusters.setdefault(cluster[wnid], []).append(wnid)
    return clusters


def ordered(clusters: Mapping[str, Sequence[str]], paths: Mapping[str, Sequence[str]]) -> list[str]:
    """The clusters as a walk through the tree meets them: neighbours are akin."""
    return sorted(clusters, key=lambda node: (*paths[clusters[node][0]], clusters[node][0]))


def base_places(count: int = COUNT, base_count: int = BASE_COUNT) -> set[int]:
    """Every fourth or so place of the walk, evenly: so the base classes lie in all parts of the tree alike."""
    return {(2 * number + 1) * count // (2 * base_count) for number in range(base_count)}


def named(nodes: Sequence[str], nouns: Mapping[str, Synset]) -> dict[str, str]:
    """A name for each: its first word, with that of its hypernym in brackets where others have it too."""
    times = Counter(nouns[node].names[0].lower() for node in nodes)
    found = {}
    for node in nodes:
        name, parent = nouns[node].names[0], nouns[node].parent
        if times[name.lower()] > 1 and parent is not None:
            name = f"{name} ({nouns[parent].names[0]})"
        found[node] = name
    if len(set(found.values())) < len(found):
        raise ValueError("two superclasses have the same name")
    return found


def as_text(wnids: Sequence[str], nouns: Mapping[str, Synset], licence: Sequence[str]) -> str:
    """The list as the text of its JSON file: a class or superclass a line."""
    paths = {wnid: path_of(wnid, nouns) for wnid in wnids}
    clusters = merge(paths)
    nodes = ordered(clusters, paths)
    base, names = base_places(), named(nodes, nouns)
    superclasses = [
        {
            "name": names[node],
            "wnid": node,
            "group": "base" if place in base else "novel",
            "members": clusters[node],
        }
        for place, node in enumerate(nodes)
    ]
    classes = [{"wnid": wnid, "names": nouns[wnid].names, "path": paths[wnid]} for wnid in sorted(wnids)]
    hypernyms = {node: nouns[node].names[0] for path in paths.values() for node in path}
    head = json.dumps({"version": VERSION, "wordnet": "3.0", "licence": licence}, indent=2).removesuffix("\n}")
    parts = {
        "superclasses": [json.dumps(row) for row in superclasses],
        "classes": [json.dumps(row) for row in classes],
        "hypernyms": [json.dumps([node, hypernyms[node]]) for node in sorted(hypernyms)],
    }
    body = [f'  "{key}": [\n    ' + ",\n    ".join(lines) + "\n  ]" for key, lines in parts.items()]
    return ",\n".join([head, *body]) + "\n}\n"


def main() -> None:
    """Reads WordNet, merges, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--synsets", type=Path)
    parser.add_argument("--out", type=Path, default=TARGET)
    told = parser.parse_args()
    nouns, licence = read_wordnet(told.wordnet)
    if told.synsets is None:
        wnids = [row["wnid"] for row in files.read_json(TARGET)["classes"]]
    else:
        wnids = _WNID.findall(told.synsets.read_text(encoding="utf-8"))
    unknown = [wnid for wnid in wnids if wnid not in nouns]
    if unknown:
        sys.exit(f"{told.wordnet} has no {', '.join(unknown[:5])}: is it WordNet 3.0?")
    files.write_bytes(told.out, as_text(wnids, nouns, licence).encode())
    sys.stdout.write(f"{told.out}: {COUNT} superclasses of {len(wnids)} classes\n")


if __name__ == "__main__":
    main()
