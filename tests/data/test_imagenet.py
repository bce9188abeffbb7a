"""ImageNet's superclasses: the list is what the rule makes of WordNet; data are seen with them."""

import importlib.util
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from kindgene.data.arrays import ArrayDataset
from kindgene.data.folder import load_folder
from kindgene.data.imagenet import (
    LIST_FILE,
    find_folders,
    imagenet_classes,
    imagenet_superclasses,
    merge_classes,
    needed_folders,
    superclasses_of,
)
from kindgene.data.regrouped import regrouped
from kindgene.pool.names import check_class_names

SCRIPT = Path(__file__).parents[2] / "scripts" / "imagenet_superclasses.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("imagenet_superclasses", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet in its layout: a folder a class, an image in each."""
    root = tmp_path_factory.mktemp("imagenet")
    for place, one in enumerate(imagenet_classes()):
        folder = root / "train" / one.wnid
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4), (place % 256, place // 256, 0)).save(folder / f"{one.wnid}_0.png")
    return root


def test_a_thousand_classes_make_611_superclasses_150_and_461():
    wnids = [one.wnid for one in imagenet_classes()]
    assert (len(wnids), wnids) == (1000, sorted(set(wnids)))
    assert (wnids[0], imagenet_classes()[0].names[0]) == ("n01440764", "tench")
    assert [len(superclasses_of(split)) for split in ("all", "base", "novel")] == [611, 150, 461]
    members = [wnid for each in imagenet_superclasses() for wnid in each.members]
    assert sorted(members) == wnids
    assert set(superclasses_of("base")).isdisjoint(superclasses_of("novel"))
    with pytest.raises(ValueError, match="base, novel, all, not 'train'"):
        superclasses_of("train")


def test_a_superclass_is_all_that_lies_below_a_noun():
    paths = {one.wnid: (*one.path, one.wnid) for one in imagenet_classes()}
    for each in imagenet_superclasses():
        assert each.members == tuple(wnid for wnid in paths if each.wnid in paths[wnid]), each.name
    named = {each.name: {imagenet_classes_by_id()[wnid].names[0] for wnid in each.members} for each in alls()}
    assert named["big cat"] == {"leopard", "snow leopard", "jaguar", "lion", "tiger", "cheetah"}
    assert named["sandwich"] == {"cheeseburger", "hotdog"}
    assert max(map(len, named.values())) == 10


def alls():
    return imagenet_superclasses()


def imagenet_classes_by_id():
    return {one.wnid: one for one in imagenet_classes()}


def test_names_can_be_typed_and_told_apart():
    names = [each.name for each in imagenet_superclasses()]
    check_class_names(names)
    assert len({name.lower() for name in names}) == 611
    assert not any("," in name or "_" in name for name in names)
    assert {"crane (wading bird)", "crane (lifting device)"} < set(names)


def test_the_base_lies_in_all_parts_of_the_tree():
    """Each kind of thing has the share of base classes that it has of all, within a class or two."""
    paths = {one.wnid: one.path for one in imagenet_classes()}
    for level in (5, 7, 9):
        kinds = {"base": Counter(), "novel": Counter()}
        for each in imagenet_superclasses():
            kinds[each.group][paths[each.members[0]][:level]] += 1
        for kind, novel in kinds["novel"].items():
            base = kinds["base"][kind]
            assert abs(base - (base + novel) * 150 / 611) < 2, kind


def test_the_list_is_what_the_rule_makes(script):
    """Of the paths in the list: no WordNet is needed."""
    paths = {one.wnid: one.path for one in imagenet_classes()}
    clusters = script.merge(paths)
    nodes = script.ordered(clusters, paths)
    assert [(each.wnid, list(each.members)) for each in imagenet_superclasses()] == [(n, clusters[n]) for n in nodes]
    base = script.base_places()
    assert [each.group == "base" for each in imagenet_superclasses()] == [place in base for place in range(611)]
    shuffled = dict(reversed(paths.items()))
    assert script.merge(shuffled) == clusters


NOUNS = """  1 This software and database is free.
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | all
00000002 03 n 02 animal 0 beast 0 002 @ 00000001 n 0000 + 00000009 v 0101 | it lives
00000003 03 n 01 sea_cow 0 001 @ 00000002 n 0000 | it swims
00000004 03 n 01 Rex 0 002 @i 00000002 n 0000 @ 00000005 n 0000 | a dog
00000005 03 n 01 thing 0 001 @ 00000001 n 0000 | one
00000006 03 n 0a cup 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 001 @ 00000005 n 0000 | ten words
"""


def test_wordnet_is_read(script, tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    nouns, licence = script.read_wordnet(tmp_path)
    assert licence == ["This software and database is free."]
    assert nouns["n00000002"] == script.Synset(("animal", "beast"), "n00000001")
    assert nouns["n00000003"].names == ("sea cow",)
    assert script.path_of("n00000004", nouns) == ("n00000001", "n00000002")
    assert len(nouns["n00000006"].names) == 10
    paths = {wnid: script.path_of(wnid, nouns) for wnid in ("n00000003", "n00000004", "n00000006")}
    assert script.merge(paths, 2) == {"n00000002": ["n00000003", "n00000004"], "n00000006": ["n00000006"]}
    assert script.named(["n00000002", "n00000003"], nouns) == {"n00000002": "animal", "n00000003": "sea cow"}
    with pytest.raises(ValueError, match="ends at 2 clusters"):
        script.merge(paths, 1, most=2)


def test_the_licence_of_wordnet_goes_with_its_words():
    document = json.loads(LIST_FILE.read_text(encoding="utf-8"))
    text = " ".join(document["licence"])
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text
    assert "Permission to use, copy, modify and distribute" in text
    assert {node for one in imagenet_classes() for node in one.path} == {node for node, _ in document["hypernyms"]}


@pytest.mark.parametrize("split", ["base", "novel", "all"])
def test_folders_of_wnids_are_seen_as_superclasses(imagenet, split):
    wanted = needed_folders(split)
    data = load_folder(find_folders(imagenet, split), 4, classes=wanted)
    view = merge_classes(data, split)
    rows = superclasses_of(split)
    assert view.class_names == tuple(row.name for row in rows)
    assert view.counts() == {row.name: len(row.members) for row in rows}
    assert view.shape == (3, 4, 4)
    wnids = [one.wnid for one in imagenet_classes()]
    for index in (0, len(view) // 2, len(view) - 1):
        pixel = ((view.batch(torch.tensor([index]))[0, :, 0, 0] + 1) * 127.5).round().int().tolist()
        assert wnids[pixel[0] + 256 * pixel[1]] in rows[view.labels[index]].members


def test_missing_folders_are_named(imagenet, tmp_path):
    assert find_folders(imagenet) == imagenet / "train"
    assert find_folders(imagenet / "train") == imagenet / "train"
    with pytest.raises(ValueError, match="holds no folders of ImageNet's classes, such as n"):
        find_folders(tmp_path)
    for wnid in needed_folders("all")[2:]:
        (tmp_path / wnid).mkdir()
    with pytest.raises(ValueError, match="lacks 2 of 1000 class folders: 'n01440764', 'n01443537'"):
        find_folders(tmp_path, "all")


def test_views(imagenet):
    pixels = torch.linspace(-1, 1, 6).view(6, 1, 1, 1)
    data = ArrayDataset(pixels, torch.tensor([0, 1, 2, 0, 3, 1]), ("a", "b", "c"), flip=True)
    view = regrouped(data, {"y": ["b"], "x": ["a", "c"]})
    assert view.class_names == ("y", "x")
    assert view.labels.tolist() == [1, 0, 1, 1, 0]
    assert torch.equal(view.batch(torch.arange(5)), pixels[[0, 1, 2, 3, 5]])
    numbers = torch.arange(5)
    assert torch.equal(view.sample(numbers, numbers, 0), data.sample(torch.tensor([0, 1, 2, 3, 5]), numbers, 0))
    part = view.subset(["x"])
    assert torch.equal(part.batch(torch.arange(3)), pixels[[0, 2, 3]])
    assert (len(part), part.labels.tolist(), part.flip) == (3, [0, 0, 0], True)
    assert pickle.loads(pickle.dumps(part)).fingerprint() == part.fingerprint()
    assert part.fingerprint() != view.fingerprint() != data.fingerprint()
    train, held = view.split(0.5, 0)
    assert (train.counts(), held.counts()) == ({"y": 1, "x": 1}, {"y": 1, "x": 2})
    for groups, told in (
        ({"x": ["a", "d"], "y": ["e"]}, "lack 2 of 3 classes that are needed: 'd', 'e'"),
        ({"x": ["a"], "y": ["a"]}, "more than once"),
        ({}, "no class names"),
    ):
        with pytest.raises(ValueError, match=told):
            regrouped(data, groups)
    with pytest.raises(ValueError, match="has the images 0 to 4"):
        view.batch(torch.tensor([5]))
