"""ImageNet-1K as the paper uses it: its classes merged along WordNet to 611 superclasses, 150 of them for pre-training.

`imagenet_superclasses.json`, beside this file, is the list; ``scripts/imagenet_superclasses.py`` makes it from WordNet
3.0. The numbers 1,000, 611, 150 and 461 are the paper's; its lists are not published, so the merging rule and the split
are ours (docs/imagenet.md). A class is named by its WordNet id, as ImageNet's folders are: ``n01440764``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from kindgene import files
from kindgene.data.dataset import Dataset
from kindgene.data.labels import listed
from kindgene.data.regrouped import RegroupedDataset, regrouped

Split = Literal["base", "novel", "all"]
SPLITS: tuple[Split, ...] = ("base", "novel", "all")

LIST_FILE = Path(__file__).with_name("imagenet_superclasses.json")
VERSION = 1


@dataclass(frozen=True)
class ImageNetClass:
    """One of the 1,000. names: its words, the most usual first; path: WordNet ids from the root to its hypernym."""

    wnid: str
    names: tuple[str, ...]
    path: tuple[str, ...]


@dataclass(frozen=True)
class ImageNetSuperclass:
    """All of the 1,000 that lie below one noun of WordNet. `group`: for pre-training (base) or transfer (novel)."""

    name: str
    wnid: str
    group: Literal["base", "novel"]
    members: tuple[str, ...]


@cache
def imagenet_superclasses() -> tuple[ImageNetSuperclass, ...]:
    """All 611, as a walk through WordNet meets them."""
    return tuple(
        ImageNetSuperclass(row["name"], row["wnid"], row["group"], tuple(row["members"]))
        for row in _document()["superclasses"]
    )


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All 1,000, by WordNet id: the order of the usual labels 0 to 999."""
    return tuple(ImageNetClass(row["wnid"], tuple(row["names"]), tuple(row["path"])) for row in _document()["classes"])


def superclasses_of(split: Split) -> tuple[ImageNetSuperclass, ...]:
    """The 150 base superclasses, the 461 novel ones, or all 611. Raises ValueError for any other split."""
    if split not in SPLITS:
        raise ValueError(f"ImageNet's superclasses are divided into {', '.join(SPLITS)}, not {split!r}")
    return tuple(each for each in imagenet_superclasses() if split in ("all", each.group))


def merge_classes(dataset: Dataset, split: Split = "base") -> RegroupedDataset:
    """A data set whose classes are WordNet ids (images or latents), with the superclasses of `split` instead.

    Raises ValueError, naming them, for classes that are needed and not there.
    """
    return regrouped(dataset, {each.name: each.members for each in superclasses_of(split)})


def needed_folders(split: Split = "base") -> tuple[str, ...]:
    """The WordNet ids of all classes in the superclasses of `split`, sorted."""
    return tuple(sorted(wnid for each in superclasses_of(split) for wnid in each.members))


def find_folders(path: files.StrPath, split: Split = "base") -> Path:
    """The folder that holds ImageNet's class folders: `path` itself, or what of ``train`` is in it.

    Raises ValueError, naming them in one line, where folders that `split` needs are missing.
    """
    wanted = needed_folders(split)
    root = Path(path)
    candidates = (root, root / "train", root / "ILSVRC" / "Data" / "CLS-LOC" / "train")
    found = max(candidates, key=lambda candidate: len(_there(candidate, wanted)))
    there = _there(found, wanted)
    if not there:
        raise ValueError(f"{root} holds no folders of ImageNet's classes, such as {wanted[0]}, nor does its train/")
    missing = [wnid for wnid in wanted if wnid not in there]
    if missing:
        raise ValueError(f"{found} lacks {len(missing)} of {len(wanted)} class folders: {listed(missing, 10)}")
    return found


def _there(folder: Path, wanted: Sequence[str]) -> set[str]:
    if not folder.is_dir():
        return set()
    return {entry.name for entry in folder.iterdir()} & set(wanted)


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = files.read_json(LIST_FILE)
    if document["version"] != VERSION:
        raise ValueError(f"ImageNet's list has version {document['version']}; this code reads {VERSION}")
    return document
