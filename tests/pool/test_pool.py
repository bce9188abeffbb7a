"""`Pool`: opened in part, grown and shrunk, in memory and on disk; what it refuses, changing nothing."""

import itertools
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene.core.pieces import split
from kindgene.pool import folder as pool_files
from kindgene.pool.pool import Pool
from kindgene.pool.tensors import state_id

CLASS_NAMES = st.lists(
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=200).filter(str.strip),
    min_size=5,
    max_size=5,
    unique=True,
)


def copied(path, to):
    return Path(shutil.copytree(path, to))


def rewritten(path, change):
    """A pool whose config.json has been changed by `change`."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    change(config)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


# Opening.


def test_classes_are_opened_in_the_pool_s_order(saved, names):
    pool = Pool.from_pretrained(saved, classes=["../../x", "cat"])
    assert pool.classes == names
    assert pool.loaded == ("cat", "../../x")
    assert pool.path == saved
    assert Pool.from_pretrained(str(saved)).loaded == names


def test_three_classes_need_only_their_own_files(pool_folder, dit, names):
    wanted = list(names[1:4])
    whole = Pool.from_pretrained(pool_folder)
    keep = {pool_folder / whole.config.classes[name].file for name in wanted}
    for path in (pool_folder / "tailors").rglob("*.safetensors"):
        if path not in keep:
            path.unlink()
    (pool_folder / "README.md").unlink()
    some = Pool.from_pretrained(pool_folder, classes=wanted)
    labels = [0, 1, 2, 3, 0, 1]
    with torch.no_grad():
        assert torch.equal(dit.run(some.recombine(wanted), labels), dit.run(whole.recombine(wanted), labels))
        assert torch.equal(dit.run(some.to_model(), labels), dit.run(whole.recombine(wanted), labels))
    with pytest.raises(ValueError, match=r"cat-.*safetensors is missing: the pool is incomplete"):
        Pool.from_pretrained(pool_folder)


def test_classes_that_were_not_loaded_are_asked_for(pool_folder, tmp_path, names, content):
    pool = Pool.from_pretrained(pool_folder, classes=["cat"])
    for act in (lambda: pool.recombine(["Cat"]), lambda: pool.save_pretrained(tmp_path / "new")):
        with pytest.raises(ValueError, match=r"not loaded: 'Cat'.*Pool\.from_pretrained\(path, classes="):
            act()
    assert not (tmp_path / "new").exists()
    assert pool.to_model().class_names == ("cat",)


def test_a_class_removed_while_the_pool_is_being_opened(pool_folder, monkeypatch):
    """The file of a class vanishes between the reading of config.json and of the file."""
    real = pool_files.read_parts
    others = iter(["cat", "Cat"])

    def meanwhile(root, config, names):
        gone = next(others, None)
        if gone:
            monkeypatch.setattr(pool_files, "read_parts", real)
            Pool.from_pretrained(root).remove([gone])
            monkeypatch.setattr(pool_files, "read_parts", meanwhile)
        return real(root, config, names)

    monkeypatch.setattr(pool_files, "read_parts", meanwhile)
    assert Pool.from_pretrained(pool_folder).loaded == ("../../x", "\u00e9", "e\u0301")


def test_a_folder_that_is_no_pool_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"nowhere is not a folder; give the folder of a pool"):
        Pool.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="file is not a folder"):
        Pool.from_pretrained(tmp_path / "file")
    with pytest.raises(ValueError, match=r"has no config\.json, so it is not a pool"):
        Pool.from_pretrained(tmp_path)


# On disk.


def test_the_same_pool_gives_the_same_bytes(dit, names, tmp_path, content):
    first, second = (
        dit.model().decompose(names, provenance={"b": 1, "a": [2]}).save_pretrained(tmp_path / where)
        for where in ("first", "second")
    )
    assert content(first) == content(second)
    third = Pool.from_pretrained(first).save_pretrained(tmp_path / "deep" / "third")
    assert content(third) == content(first)


def test_a_pool_s_folder_holds_what_the_design_says(saved, names, content):
    files = content(saved)
    tailors = {path for path in files if path.startswith("tailors/")}
    assert files.keys() - tailors == {"config.json", "learngene.safetensors", "README.md"}
    config = json.loads(files["config.json"])
    assert {entry["file"] for entry in config["classes"].values()} == tailors
    assert list(config["classes"]) == list(names)
    assert len(tailors) == 5


def test_an_empty_folder_is_written_to_and_any_other_is_not(dit, names, saved, tmp_path, content):
    pool = dit.model().decompose(names)
    (tmp_path / "empty").mkdir()
    pool.save_pretrained(tmp_path / "empty")
    before = content(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / ".hidden").write_text("mine")
    for where in ("empty", "file", "used"):
        with pytest.raises(ValueError, match=f"{where} exists and is not an empty folder; choose a new one"):
            pool.save_pretrained(tmp_path / where)
    assert content(tmp_path / "empty") == before
    assert (tmp_path / "file").read_text() == "mine"
    assert content(tmp_path / "used") == {".hidden": b"mine"}


@given(CLASS_NAMES)
@settings(max_examples=10)
def test_any_names_survive_the_disk(saved, given_names):
    original = Pool.from_pretrained(saved)
    tailors = [replace(tailor, classes=(name,)) for tailor, name in zip(original.tailors, given_names, strict=True)]
    classes = {
        name: replace(entry, row=0) for name, entry in zip(given_names, original.config.classes.values(), strict=True)
    }
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "pool"
        Pool(replace(original.config, classes=classes), original.learngene, tailors).save_pretrained(path)
        assert sorted(os.listdir(place)) == ["pool"]
        pool = Pool.from_pretrained(path)
        assert pool.loaded == tuple(given_names)
        for name, tailor in zip(given_names, original.tailors, strict=True):
            (found,) = Pool.from_pretrained(path, classes=[name]).tailors
            assert all(torch.equal(found.components[key], value) for key, value in tailor.components.items())
        pool.remove(given_names[1:])
        assert Pool.from_pretrained(path).classes == (given_names[0],)
        assert len(list(path.rglob("tailors/*/*"))) == 1


def test_a_cast_copy_keeps_the_learngene_s_id(saved, dit, tmp_path, scatter):
    pool = Pool.from_pretrained(saved)

    def cast(state):
        return {key: value.to(torch.float32) for key, value in state.items()}

    tailors = [replace(t, components=cast(t.components), rows=cast(t.rows)) for t in pool.tailors]
    copy = Pool(pool.config, cast(pool.learngene), tailors)
    folder = copy.save_pretrained(tmp_path / "float32")
    opened = Pool.from_pretrained(folder)
    assert opened.config.learngene_id == pool.config.learngene_id == state_id(pool.learngene)
    assert opened.config.learngene_sha256 != pool.config.learngene_sha256
    with torch.no_grad():
        found = dit.run(opened.recombine(["cat", "Cat"]), [0, 1, 2] * 2)
        expected = dit.run(pool.recombine(["cat", "Cat"]), [0, 1, 2] * 2)
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    opened.add(scatter(opened.transfer(["new"])))
    assert Pool.from_pretrained(folder, classes=["new"]).loaded == ("new",)
    with pytest.raises(ValueError, match="learngene is not the pool's"):
        Pool.from_pretrained(saved).add(opened.transfer(["newer"]))


# Growing and shrinking.


def test_in_memory_and_on_disk_a_pool_grows_and_shrinks_alike(dit, names, tmp_path, scatter):
    memory = dit.model(gate_map=[0, 1, 0, 2, 2]).decompose(names)
    disk = dit.model(gate_map=[0, 1, 0, 2, 2]).decompose(names)
    folder = disk.save_pretrained(tmp_path / "pool")
    for pool in (memory, disk):
        pool.add(scatter(pool.transfer(["new", "newer"])))
        pool.remove(["cat", "newer", "\u00e9", "e\u0301"])
    assert memory.path is None
    for pool in (disk, Pool.from_pretrained(folder)):
        assert pool.classes == memory.classes == ("Cat", "../../x", "new")
        labels = [0, 1, 2, 3, 0, 1]
        with torch.no_grad():
            assert torch.equal(dit.run(pool.to_model(), labels), dit.run(memory.to_model(), labels))
    later = memory.save_pretrained(tmp_path / "later")
    assert {path.relative_to(later) for path in later.rglob("*.safetensors")} == {
        path.relative_to(folder) for path in folder.rglob("*.safetensors")
    }


def test_a_pool_opened_in_part_grows_and_shrinks(pool_folder, scatter, names):
    pool = Pool.from_pretrained(pool_folder, classes=["cat"])
    pool.add(scatter(pool.transfer(["new"])))
    assert pool.loaded == ("cat", "new")
    pool.remove(["Cat"])
    assert pool.loaded == ("cat", "new")
    assert Pool.from_pretrained(pool_folder).loaded == ("cat", *names[2:], "new")


def test_a_damaged_class_can_be_removed(pool_folder, names):
    file = pool_folder / Pool.from_pretrained(pool_folder).config.classes["Cat"].file
    file.write_bytes(b"damaged")
    Pool.from_pretrained(pool_folder, classes=["cat"]).remove(["Cat"])
    assert Pool.from_pretrained(pool_folder).loaded == ("cat", *names[2:])
    assert not file.exists()


def test_new_names_may_be_given_when_adding(pool_folder, scatter, names):
    pool = Pool.from_pretrained(pool_folder)
    pool.add(scatter(pool.transfer(["new"])), class_names=["renamed"])
    assert Pool.from_pretrained(pool_folder).classes == (*names, "renamed")


def test_every_class_may_go(pool_folder, content):
    pool = Pool.from_pretrained(pool_folder)
    pool.remove(pool.classes)
    opened = Pool.from_pretrained(pool_folder)
    assert opened.classes == opened.loaded == ()
    assert content(pool_folder).keys() == {"config.json", "learngene.safetensors", "README.md"}
    assert not (pool_folder / "tailors").exists() or not any((pool_folder / "tailors").iterdir())
    with pytest.raises(ValueError, match="no classes left"):
        opened.to_model()
    with pytest.raises(ValueError, match="it has no classes"):
        opened.recombine(["cat"])


def test_changes_of_several_who_opened_the_same_pool_all_land(pool_folder, scatter, names):
    first, second, third = (Pool.from_pretrained(pool_folder) for _ in range(3))
    first.remove(["cat"])
    second.add(scatter(second.transfer(["new"])))
    assert second.classes == (*names[1:], "new")
    assert second.loaded == second.classes
    third.remove(["Cat"])
    assert third.classes == (*names[2:], "new")
    assert third.loaded == names[2:]
    again = Pool.from_pretrained(pool_folder)
    assert again.classes == again.loaded == (*names[2:], "new")
    again.verify()


def test_what_others_changed_is_not_changed_again(pool_folder, content, scatter, names):
    first, second = Pool.from_pretrained(pool_folder), Pool.from_pretrained(pool_folder)
    first.remove(["cat"])
    first.add(scatter(first.transfer(["new"])))
    before = content(pool_folder)
    for act, message in (
        (
            lambda: second.remove(["cat"]),
            "class 'cat' was changed since it was opened .*open the pool again and repeat",
        ),
        (lambda: second.add(scatter(second.transfer(["new"]))), "has 'new' already"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
        assert content(pool_folder) == before
        assert second.classes == names
    first.remove(["new"])
    first.add(scatter(first.transfer(["cat"])))  # another cat
    with pytest.raises(ValueError, match="class 'cat' was changed"):
        second.remove(["cat"])


def test_a_tailor_that_came_to_be_shared_otherwise_is_not_removed(dit, tmp_path):
    names = list("abcde")
    folder = dit.model(gate_map=[0, 0, 0, 1, 2]).decompose(names).save_pretrained(tmp_path / "pool")
    first, second = Pool.from_pretrained(folder), Pool.from_pretrained(folder)
    first.remove(["a"])
    with pytest.raises(ValueError, match="class 'b' was changed"):
        second.remove(["b"])
    assert Pool.from_pretrained(folder).classes == tuple("bcde")


def test_another_pool_in_the_same_place_is_not_written_to(pool_folder, dit, names, content, scatter):
    pool = Pool.from_pretrained(pool_folder)
    fresh = scatter(pool.transfer(["new"]))
    shutil.rmtree(pool_folder)
    for act in (lambda: pool.add(fresh), lambda: pool.remove(["cat"])):
        with pytest.raises(ValueError, match="is not a folder"):
            act()
    dit.model(learngene_rank=3).decompose(names).save_pretrained(pool_folder)
    before = content(pool_folder)
    for act in (lambda: pool.add(fresh), lambda: pool.remove(["cat"])):
        with pytest.raises(ValueError, match="changed since it was opened here, it holds another learngene"):
            act()
    assert content(pool_folder) == before
    assert pool.classes == names


# What is refused changes nothing.

BAD_NAMES = [[], "cat", ["cat", "cat"], ["cat", "nobody"], [""], ["x" * 300], ["a\nb"], [3], None, ["Cat", "CAT"]]


@pytest.mark.parametrize("asked", BAD_NAMES, ids=repr)
@pytest.mark.parametrize("verb", ["open", "recombine", "remove"])
def test_impossible_class_lists_are_refused(pool_folder, content, verb, asked, names):
    if (verb, asked) == ("open", None):
        asked = ("cat", None)  # None by itself means all
    pool, before = Pool.from_pretrained(pool_folder), content(pool_folder)
    act = {"open": lambda: Pool.from_pretrained(pool_folder, asked), "recombine": lambda: pool.recombine(asked)}
    with pytest.raises(ValueError, match="class") as refused:
        act.get(verb, lambda: pool.remove(asked))()
    assert "\n" not in str(refused.value)
    assert content(pool_folder) == before
    assert pool.classes == pool.loaded == names


def test_the_nearest_class_is_suggested(saved):
    with pytest.raises(ValueError, match=r"no class 'cats' in this pool; nearest: 'cat'"):
        Pool.from_pretrained(saved, classes=["cats"])


@pytest.mark.parametrize(
    ("given_names", "message"),
    [
        (["cat"], "the pool has 'cat' already; remove first, or use other names"),
        (["a", "b"], "2 class names for a model of 1 classes"),
        ("a", "must be a list of names"),
        (["a\x1b"], "control character"),
    ],
)
def test_impossible_additions_are_refused(pool_folder, content, scatter, names, given_names, message):
    pool = Pool.from_pretrained(pool_folder)
    fresh, before = scatter(pool.transfer(["new"])), content(pool_folder)
    with pytest.raises(ValueError, match=message):
        pool.add(fresh, class_names=given_names)
    assert content(pool_folder) == before
    assert pool.classes == pool.loaded == names


def test_a_model_whose_learngene_was_trained_is_refused(pool_folder, content, dit):
    pool = Pool.from_pretrained(pool_folder)
    before = content(pool_folder)
    fresh = pool.transfer(["new"])
    with torch.no_grad():
        fresh.module.final_layer.linear.bias[0] += 1
    for model in (fresh, dit.model(), pool.transfer(["new"]).to(torch.float32)):
        with pytest.raises(ValueError, match="this model's learngene is not the pool's"):
            pool.add(model, class_names=["new"] if model.num_classes == 1 else list("abcde"))
    assert content(pool_folder) == before


def test_files_that_are_not_the_pool_s_own_are_named(saved, tmp_path):
    files = [path.relative_to(saved) for path in saved.rglob("*.safetensors")]
    assert len(files) == 6
    for number, (file, damage) in enumerate(itertools.product(files, ("cut", "flipped", "empty", "missing", "folder"))):
        path = copied(saved, tmp_path / str(number)) / file
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "missing":
            path.write_bytes({"cut": data[:-1], "flipped": data, "empty": b""}[damage])
        with pytest.raises(ValueError, match=file.name) as refused:
            Pool.from_pretrained(tmp_path / str(number))
        assert "copy" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_swapped_tailors_are_named(pool_folder):
    entries = Pool.from_pretrained(pool_folder).config.classes
    one, two = (pool_folder / entries[name].file for name in ("cat", "Cat"))
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    with pytest.raises(ValueError, match="is not the file this pool was written with"):
        Pool.from_pretrained(pool_folder, classes=["cat"])
    one.write_bytes(data[0])
    two.write_bytes(data[1])

    def swap(config):
        cat, other = config["classes"]["cat"], config["classes"]["Cat"]
        config["classes"] |= {"cat": other, "Cat": cat}

    with pytest.raises(ValueError, match=r"is not the tailor of 'cat', as config\.json says"):
        Pool.from_pretrained(rewritten(pool_folder, swap), classes=["cat"])


def test_another_learngene_is_named(pool_folder, dit, names, tmp_path):
    other = dit.model(learngene_rank=5).decompose(names)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "learngene.safetensors", pool_folder)
    with pytest.raises(ValueError, match=r"learngene\.safetensors is not the file this pool was written with"):
        Pool.from_pretrained(pool_folder)
    rewritten(pool_folder, lambda config: config.update(learngene_sha256=other.config.learngene_sha256))
    with pytest.raises(ValueError, match=r"learngene\.safetensors is another learngene \([0-9a-f]{16}; this pool has"):
        Pool.from_pretrained(pool_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ('{"format": "kindgene-pool", "format_version"', "is not valid JSON"),
        ("\x00\x01", "is not valid JSON"),
        ("[]", "is not a pool's config"),
        ('{"format": "other"}', "is not a pool's config"),
        ('{"format": "kindgene-pool"}', "format_version is missing"),
        (
            '{"format": "kindgene-pool", "format_version": 99}',
            "version 99, .* install the kindgene that wrote it",
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_named(pool_folder, text, message):
    (pool_folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}") as refused:
        Pool.from_pretrained(pool_folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", ["../x", "../pool/learngene.safetensors", "/etc/passwd", "tailors/../config.json"])
def test_a_path_that_leaves_the_pool_is_not_followed(pool_folder, file, monkeypatch):
    rewritten(pool_folder, lambda config: config["classes"]["cat"].update(file=file))
    opened = []
    monkeypatch.setattr(pool_files, "read_bytes", lambda *args: opened.append(args))
    with pytest.raises(ValueError, match=r"'cat': .* is not the path of a tailor's file inside the pool"):
        Pool.from_pretrained(pool_folder)
    assert opened == []


def test_a_config_that_does_not_fit_the_tensors_is_named(pool_folder, tmp_path):
    def ranks(config):
        config["ranks"]["blocks.0.attn.proj"] = [3]

    def tailor_ranks(config):
        config["classes"]["cat"]["tailor_ranks"] = 3

    for number, (change, message) in enumerate(
        [
            (ranks, r"learngene\.safetensors: blocks\.0\.attn\.proj\.u has shape \[4, 16\], expected .* first 3"),
            (tailor_ranks, r"cat-.*: blocks\.0\.attn\.qkv\.u has shape \[12, 16\], expected \[9, 16\]"),
            (lambda config: config["ranks"].update(elsewhere=[2]), r"learngene\.safetensors: elsewhere\.u is missing"),
            (lambda config: config["label_tables"].append("t"), r"learngene\.safetensors: t\.null_row is missing"),
            (lambda config: config["label_tables"].clear(), r"cat-.*: unexpected y_embedder\.embedding_table"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            Pool.from_pretrained(rewritten(copied(pool_folder, tmp_path / str(number)), change))


def test_a_pool_is_not_changed_by_its_models(saved, dit):
    pool = Pool.from_pretrained(saved)
    known = state_id(pool.learngene), [tailor.to_bytes("") for tailor in pool.tailors]
    models = [pool.to_model(), pool.recombine(["cat", "Cat"]), pool.recombine(["cat"], form="merged")]
    models += [pool.transfer(["new"])]
    with torch.no_grad():
        for model in models:
            for value in model.parameters():
                value.fill_(7)
    assert (state_id(pool.learngene), [tailor.to_bytes("") for tailor in pool.tailors]) == known


def test_all_loaded_classes_make_a_trainable_model(saved, names, dit):
    pool = Pool.from_pretrained(saved, classes=names[1:4])
    model = pool.to_model()
    assert model.class_names == names[1:4]
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen == ["module.pos_embed"]
    dit.run(model, [0, 1, 2, 3, 0, 1]).sum().backward()
    assert model.bank.tailors.rows.grad.any()
    back = split(model)
    for tailor, row in zip(pool.tailors, back.tailors, strict=True):
        assert all(torch.equal(tailor.components[key], row[key]) for key in row)


# Merging and verifying.


def grown(folder, scatter, name, seed):
    """A pool that grew from the saved one: a new class beside the old ones, in memory only."""
    pool = Pool.from_pretrained(folder)
    pool.path = None
    pool.add(scatter(pool.transfer([name]), seed))
    return pool


@pytest.mark.parametrize("verb", ["merge", "add"])
def test_pools_that_grew_from_one_learngene_are_merged(pool_folder, saved, scatter, names, dit, verb):
    other = grown(saved, scatter, "theirs", 6)
    pool = Pool.from_pretrained(pool_folder)
    pool.add(scatter(pool.transfer(["mine"])))
    before = dit.run(pool.recombine(["mine", "cat"]), [0, 1, 2, 0, 1, 2])
    getattr(pool, verb)(other, ["theirs"])
    merged = Pool.from_pretrained(pool_folder)
    merged.verify()
    assert merged.classes == (*names, "mine", "theirs")
    assert torch.equal(dit.run(merged.recombine(["mine", "cat"]), [0, 1, 2, 0, 1, 2]), before)
    assert torch.equal(
        dit.run(merged.recombine(["theirs"]), [0, 1] * 3), dit.run(other.recombine(["theirs"]), [0, 1] * 3)
    )


def test_part_of_a_shared_tailor_can_be_merged(dit, tmp_path):
    model = dit.model(gate_map=[0, 0, 0, 1, 2])
    pool = model.decompose(list("abcde"))
    other = model.decompose(list("abcde"))
    pool.remove(["a", "c", "d", "e"])
    folder = pool.save_pretrained(tmp_path / "pool")
    pool.merge(other, ["c", "a"])
    pool.verify()
    assert Pool.from_pretrained(folder).classes == ("b", "a", "c")
    labels = [0, 1, 2, 3, 0, 1]
    assert torch.equal(
        dit.run(Pool.from_pretrained(folder).recombine(["a", "b", "c"]), labels),
        dit.run(other.recombine(["a", "b", "c"]), labels),
    )


def test_what_cannot_be_merged_is_refused(pool_folder, saved, scatter, content, dit, names):
    pool, before = Pool.from_pretrained(pool_folder), content(pool_folder)
    foreign = dit.model(learngene_rank=3).decompose([f"{name} 2" for name in names])
    with pytest.raises(ValueError, match="different learngenes"):
        pool.merge(foreign)
    with pytest.raises(ValueError, match=r"has 'cat', 'Cat'.* already"):
        pool.merge(Pool.from_pretrained(saved))
    with pytest.raises(ValueError, match="no class 'nobody'"):
        pool.merge(grown(saved, scatter, "theirs", 6), ["nobody"])
    with pytest.raises(ValueError, match="not loaded"):
        pool.merge(Pool.from_pretrained(saved, classes=["cat"]))
    assert content(pool_folder) == before


def test_a_copy_in_another_dtype_keeps_the_id_and_takes_tailors(saved, scatter, tmp_path, names):
    pool = Pool.from_pretrained(saved)
    small = pool.subset(pool.plan(names, dtype="bfloat16"))
    assert small.config.learngene_id == pool.config.learngene_id
    folder = small.save_pretrained(tmp_path / "small")
    small.merge(grown(saved, scatter, "theirs", 6), ["theirs"])
    small.verify()
    assert {value.dtype for value in Pool.from_pretrained(folder).tailors[-1].components.values()} == {torch.bfloat16}
    limit = int(0.75 * pool.plan(["cat"]).cost.parameters)
    assert pool.subset(pool.plan(["cat"], max_parameters=limit)).config.learngene_id != pool.config.learngene_id


def test_verify_names_the_first_file_that_is_wrong(pool_folder, dit, names):
    pool = Pool.from_pretrained(pool_folder, learngene_only=True)
    pool.verify()
    tailor = pool_folder / pool.config.classes["Cat"].file
    good = tailor.read_bytes()
    tailor.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match=tailor.name):
        pool.verify()
    tailor.write_bytes(good)
    stray = tailor.with_name("stray-0123456789abcdef.safetensors")
    stray.write_bytes(good)
    with pytest.raises(ValueError, match=r"stray.* is of no class"):
        pool.verify()
    stray.unlink()
    learngene = pool_folder / "learngene.safetensors"
    learngene.write_bytes(learngene.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"learngene\.safetensors"):
        pool.verify()
    with pytest.raises(ValueError, match="in memory only"):
        dit.model().decompose(names).verify()


def test_the_learngene_alone_is_enough_to_transfer(pool_folder, scatter):
    shutil.rmtree(pool_folder / "tailors")
    pool = Pool.from_pretrained(pool_folder, learngene_only=True)
    assert pool.loaded == ()
    state = torch.random.get_rng_state()
    fresh = pool.transfer(["new"], generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)  # no generator but the one that was given
    pool.add(scatter(fresh))
    assert pool.loaded == ("new",)
