"""kindgene add, remove, merge, verify, push: pools change in place, and every refusal leaves them as they were."""

import shutil

import pytest
import torch

from kindgene import Pool

SMALL = ("--steps", 2, "--batch-size", 8)


def outputs(pool, classes):
    model = Pool.from_pretrained(pool).recombine(classes)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return model(x, torch.tensor([100, 900]), torch.tensor([0, 1]))


def test_add_trains_and_adds(kindgene, pool, tmp_path):
    before = outputs(pool, ["2", "0"])
    told = kindgene("add", pool, "--classes", "6,7", *SMALL, "--out", tmp_path / "new")
    assert "now 0, 1, 2, 6, 7" in told.out
    assert Pool.from_pretrained(pool).classes == ("0", "1", "2", "6", "7")
    assert torch.equal(outputs(pool, ["2", "0"]), before)
    kindgene("verify", pool)


def test_add_is_transfer_with_the_same_tailors(kindgene, pool, tmp_path):
    twin = shutil.copytree(pool, tmp_path / "twin")
    kindgene("add", pool, "--classes", "6", *SMALL, "--out", tmp_path / "a", "--seed", 3)
    kindgene("transfer", twin, "--classes", "6", *SMALL, "--out", tmp_path / "b", "--seed", 3, "--add")
    assert torch.equal(outputs(pool, ["6"]), outputs(twin, ["6"]))


def test_remove_leaves_no_file_of_the_class(kindgene, pool):
    entry = Pool.from_pretrained(pool).config.classes["1"]
    before = outputs(pool, ["2", "0"])
    assert "2 classes left" in kindgene("remove", pool, "--classes", "1").out
    assert Pool.from_pretrained(pool).classes == ("0", "2")
    assert not (pool / entry.file).exists()
    assert torch.equal(outputs(pool, ["2", "0"]), before)
    kindgene("verify", pool)


def test_merge_takes_what_grew_elsewhere(kindgene, pool, tmp_path):
    other = shutil.copytree(pool, tmp_path / "other")
    kindgene("add", other, "--classes", "6,7", *SMALL, "--out", tmp_path / "new")
    assert "4 classes, 1 of them new" in kindgene("merge", pool, other, "--classes", "7").out
    kindgene("verify", pool)
    assert torch.equal(outputs(pool, ["7", "0"]), outputs(other, ["7", "0"]))


@pytest.fixture
def on_the_hub(shared_pool, monkeypatch, tmp_path):
    """The shared pool as the repository user/pool."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kindgene.pool.hub.fetch", lambda name, *rest: {"user/pool": shared_pool}[name])


def test_a_hub_id_can_be_merged_from(kindgene, on_the_hub, pool):
    kindgene("remove", pool, "--classes", "0,2")
    assert "2 classes, 1 of them new" in kindgene("merge", pool, "user/pool", "--classes", "2").out
    assert Pool.from_pretrained(pool).classes == ("1", "2")
    kindgene("verify", pool)


def test_what_only_reads_takes_a_hub_id(kindgene, on_the_hub, shared_pool, tree, tmp_path):
    for place, name in (("here", shared_pool), ("hub", "user/pool")):
        kindgene("recombine", name, "--classes", "1,0", "--out", tmp_path / place)
        kindgene("sample", name, "--classes", "1", "--per-class", 1, "--steps", 2, "--out", tmp_path / f"{place}.png")
    assert tree(tmp_path / "hub") == tree(tmp_path / "here")
    assert (tmp_path / "hub.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    assert "pool user/pool" in kindgene("inspect", "user/pool").out
    assert '"model": "user/pool"' in kindgene("evaluate", "user/pool", "--classes", "1", "--dry-run").out


def test_tailors_are_trained_beside_a_learngene_of_the_hub_but_not_added_to_it(kindgene, refused, on_the_hub, pool):
    new = ("user/pool", "--classes", "6", *SMALL, "--out", "run")
    for adding in (("add", *new), ("transfer", *new, "--add")):
        assert "user/pool is on the Hub, and tailors are added to a folder" in refused(*adding)
    told = kindgene("transfer", *new).out
    assert "--resume latest --add adds its tailors to a folder with the learngene of user/pool" in told
    kindgene("add", pool, *new[1:], "--resume", "latest")
    assert Pool.from_pretrained(pool).classes == ("0", "1", "2", "6")


def test_a_pool_in_which_nothing_is_wrong(kindgene, shared_pool):
    told = kindgene("verify", shared_pool).out
    assert "whole" in told
    assert "3 classes" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("remove", "--classes", "9"), "no class '9'"),
        (("remove", "--classes", ""), "not empty"),
        (("merge", "FISH"), "different learngenes"),
        (("merge", "SELF"), "has '0', '1', '2' already"),
        (("merge", "SELF", "--classes", "8"), "no class '8'"),
        (("merge", "NOWHERE"), "is not a folder"),
        (("add", "--classes", "0", "--out", "OUT"), "already"),
        (("add", "--classes", "nobody", "--out", "OUT"), "no class 'nobody'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused_changes_nothing(refused, pool, fish_pool, tree, tmp_path, arguments, told):
    places = {"FISH": fish_pool, "SELF": pool, "NOWHERE": tmp_path / "nowhere", "OUT": tmp_path / "out"}
    before = tree(pool)
    verb, *rest = (places.get(argument, argument) for argument in arguments)
    assert told in refused(verb, pool, *rest)
    assert tree(pool) == before
    assert not (tmp_path / "out").exists()


def test_verify_names_what_is_wrong(refused, pool):
    tailor = next(pool.rglob("0-*.safetensors"))
    tailor.write_bytes(tailor.read_bytes()[:-1])
    assert tailor.name in refused("verify", pool)


def test_push_tells_where(kindgene, refused, pool, monkeypatch):
    asked = []
    monkeypatch.setattr("kindgene.pool.hub.push", lambda *a, **options: asked.append((a, options)) or "https://hub/1")
    assert kindgene("push", pool, "user/pool", "--private", "--message", "first").out == "https://hub/1\n"
    assert asked == [((pool, "user/pool"), {"private": True, "commit_message": "first", "token": None})]
    assert "a Hub repository is written" in refused("push", pool, "no/such/name")


@pytest.mark.parametrize(
    "verb",
    [
        ("sample", "--out", "x.png"),
        ("recombine", "--classes", "1", "--out", "x"),
        ("plan",),
        ("inspect",),
        ("evaluate",),
        ("transfer", "--out", "x"),
    ],
)
def test_a_hub_id_is_looked_for_where_there_is_no_folder(refused, monkeypatch, tmp_path, verb):
    monkeypatch.chdir(tmp_path)
    name, *rest = verb
    rest = rest or ["--classes", "1"]
    assert "there is no folder 'user/nowhere' here, and on the Hub" in refused(name, "user/nowhere", *rest)
