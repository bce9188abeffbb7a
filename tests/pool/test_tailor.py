"""One tailor: its label rows by class, and its file."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch

from kindgene.pool.classes import ClassEntry
from kindgene.pool.folder import read_config, read_parts, read_tailors
from kindgene.pool.pool import Pool
from kindgene.pool.tailor import Tailor, tailors_by_class, write_tailors


@pytest.fixture
def tailor():
    """A tailor of three classes, with one label table."""
    components = {"x.u": torch.ones(2, 3), "x.s": torch.ones(2), "x.v": torch.ones(2, 4)}
    return Tailor(("a", "b", "c"), components, {"table": torch.arange(6.0).view(3, 2)})


def test_a_class_has_its_own_label_row(tailor):
    assert torch.equal(tailor.row_of("b")["table"], torch.tensor([2.0, 3.0]))


def test_without_a_class_the_others_keep_their_rows(tailor):
    left = tailor.without(["a", "unknown"])
    assert left.classes == ("b", "c")
    assert all(torch.equal(left.row_of(name)["table"], tailor.row_of(name)["table"]) for name in "bc")
    assert left.components is tailor.components
    assert tailor.classes == ("a", "b", "c")


def test_entries_number_the_rows(tailor):
    assert tailor.entries({"x": (2,)}, "file", "digest") == {
        name: ClassEntry("file", "digest", 2, row) for row, name in enumerate("abc")
    }
    assert tailors_by_class([tailor]) == dict.fromkeys("abc", tailor)


def test_no_two_tailors_have_the_same_bytes(tailor):
    data = tailor.to_bytes("id")
    assert tailor.to_bytes("id") == data
    others = [
        replace(tailor, classes=("a", "b", "C")).to_bytes("id"),
        replace(tailor, classes=("b", "a", "c")).to_bytes("id"),
        tailor.to_bytes("another"),
        tailor.without(["c"]).to_bytes("id"),
    ]
    assert len({data, *others}) == 5


@pytest.fixture
def shared(dit, tmp_path):
    """A pool on disk whose classes b and c share a tailor."""
    pool = dit.model(classes=3, gate_map=[0, 1, 1]).decompose(["a", "b", "c"])
    return Pool.from_pretrained(pool.save_pretrained(tmp_path / "pool"))


def test_a_file_comes_back_for_all_its_classes(shared):
    config = shared.config
    file = config.classes["b"].file
    assert file == config.classes["c"].file != config.classes["a"].file
    (found,) = read_tailors(shared.path, config, ["b", "c"], shared.learngene)
    expected = tailors_by_class(shared.tailors)["c"]
    assert found.classes == ("b", "c")
    for mine, its in ((found.components, expected.components), (found.rows, expected.rows)):
        assert all(torch.equal(mine[key], its[key]) for key in its)
    entries = write_tailors(shared.path, [(found, config.tailor_ranks_of("b"))], config.learngene_id)
    assert entries == {name: config.classes[name] for name in "bc"}
    assert hashlib.sha256((shared.path / file).read_bytes()).hexdigest() == config.classes["b"].sha256


def test_a_file_of_other_classes_is_refused(shared):
    """Two classes change places in config.json; every hash is right."""
    path = shared.path / "config.json"
    config = json.loads(path.read_text())
    config["classes"]["b"]["row"], config["classes"]["c"]["row"] = 1, 0
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"b-.*safetensors is not the tailor of 'c', 'b', as config.json says"):
        Pool.from_pretrained(shared.path)
    config["classes"]["b"]["row"], config["classes"]["c"]["row"] = 0, 1
    config["classes"]["A"] = config["classes"].pop("a")
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"a-.*safetensors is not the tailor of 'A'"):
        Pool.from_pretrained(shared.path)
    assert Pool.from_pretrained(shared.path, classes=["c"]).loaded == ("b", "c")


def test_a_tailor_of_another_learngene_is_refused(shared, dit, tmp_path):
    """Its file is put in place of one of ours, and its hash into config.json."""
    other = dit.model(classes=3, learngene_rank=5).decompose(["a", "b", "c"])
    entry = Pool.from_pretrained(other.save_pretrained(tmp_path / "other")).config.classes["a"]
    target = shared.path / entry.file
    target.parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "other" / entry.file, target)
    config = json.loads((shared.path / "config.json").read_text())
    config["classes"]["a"] |= {"file": entry.file, "sha256": entry.sha256}
    (shared.path / "config.json").write_text(json.dumps(config))
    ours, theirs = shared.config.learngene_id[:16], other.config.learngene_id[:16]
    with pytest.raises(ValueError, match=rf"a-.* is a tailor of another learngene \({theirs}; this pool has {ours}\)"):
        Pool.from_pretrained(shared.path)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("blocks.0.attn.proj.u", lambda value: value[:, :-1], r"proj\.u has shape \[4, 15\], expected \[4, 16\]"),
        ("blocks.0.attn.proj.s", lambda value: value * float("nan"), r"proj\.s has values that are not finite"),
        ("blocks.0.mlp.fc1.v", None, r"fc1\.v is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(shared, key, change, message):
    """A file that another program wrote, with the right names and hashes."""
    tailor = tailors_by_class(shared.tailors)["a"]
    components = dict(tailor.components)
    value = components.pop(key)
    if change is not None:
        components[key] = change(value)
    wrong = replace(tailor, components=components)
    ranks = shared.config.tailor_ranks_of("a")
    entries = write_tailors(shared.path, [(wrong, ranks)], shared.config.learngene_id)
    config = shared.config.with_classes({**shared.config.classes, **entries})
    with pytest.raises(ValueError, match=rf"a-.*safetensors: .*{message}"):
        read_tailors(shared.path, config, ["a"], shared.learngene)


def test_a_tailor_s_shapes_follow_its_own_ranks(pool_folder, scatter):
    pool = Pool.from_pretrained(pool_folder)
    pool.add(scatter(pool.transfer(["wide"], tailor_rank=7)))
    config = read_config(pool_folder)
    _, (tailor,) = read_parts(pool_folder, config, ["wide"])
    assert tailor.components["blocks.0.attn.qkv.u"].shape == (21, 16)
    assert config.classes["wide"].tailor_ranks == 7
    assert config.classes["cat"].tailor_ranks == 4
