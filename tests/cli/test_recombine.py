"""kindgene recombine: both forms, budgets kept, names with commas, and whole folders or none."""

import json
import re

import pytest
import torch

from kindgene import DiT, Pool

ONE = ("--classes", "1")


def parameters(told):
    return int(re.search(r"([0-9,]+) parameters", told)[1].replace(",", ""))


def assert_same_model(a, b, classes):
    """Equal up to rounding: a saved model may be put together in another form than one made in memory."""
    x, t, y = torch.randn(classes, 1, 8, 8), torch.full((classes,), 700), torch.arange(classes)
    torch.testing.assert_close(a.eval()(x, t, y), b.eval()(x, t, y), rtol=1e-4, atol=1e-5)


def test_gated_is_a_pool_of_its_own(kindgene, shared_pool, tmp_path):
    told = kindgene("recombine", shared_pool, "--classes", "2,0", "--out", tmp_path / "two").out
    pool, original = Pool.from_pretrained(tmp_path / "two"), Pool.from_pretrained(shared_pool)
    assert pool.classes == ("2", "0")
    assert pool.config.weights == "ema"
    assert pool.config.provenance["recipe"] == "kindgene decompose"
    assert original.config.learngene_id in json.dumps(pool.config.provenance)
    model = pool.recombine(["2", "0"])
    assert parameters(told) == sum(value.numel() for value in model.parameters())
    assert_same_model(model, original.recombine(["2", "0"]), 3)  # null too
    kindgene("recombine", tmp_path / "two", "--classes", "0", "--out", tmp_path / "one")
    assert Pool.from_pretrained(tmp_path / "one").classes == ("0",)


@pytest.mark.parametrize("form", ["merged", "dense"])
def test_merged_and_dense_are_plain_dits(kindgene, shared_pool, tmp_path, form):
    kindgene("recombine", shared_pool, *ONE, "--form", form, "--out", tmp_path / "one")
    model, pool = DiT.from_pretrained(tmp_path / "one"), Pool.from_pretrained(shared_pool)
    assert (model.class_names, model.null_class) == (("1",), None)
    assert_same_model(model, pool.recombine(["1"], form=form), 1)
    record = json.loads((tmp_path / "one" / "provenance.json").read_text())
    assert (record["weights"], record["plan"]["form"]) == ("ema", form)
    assert record["plan"]["learngene_id"] == pool.config.learngene_id
    assert record["pool"] == pool.config.provenance


@pytest.mark.parametrize("form", ["gated", "merged", "auto"])
def test_a_budget_is_kept(kindgene, shared_pool, tmp_path, form):
    whole = kindgene("recombine", shared_pool, *ONE, "--form", form, "--out", tmp_path / "whole").out
    budget = int(0.8 * parameters(whole))
    small = ("--form", form, "--out", tmp_path / "small", "--max-params", budget)
    assert parameters(kindgene("recombine", shared_pool, *ONE, *small).out) <= budget
    kindgene("sample", tmp_path / "small", "--steps", 1, "--per-class", 1, "--out", tmp_path / "x.png")
    facts = json.loads(kindgene("evaluate", tmp_path / "small", "--dry-run").out)
    assert facts["parameters"] <= budget


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        ("--max-macs", "0.4M", "multiply-adds"),
        ("--max-bytes", "180kB", "bytes"),
        ("--max-latency", "1000ms", "ms a forward on cpu"),
    ],
)
def test_other_budgets(kindgene, shared_pool, tmp_path, limit, value, told):
    out = ("--out", tmp_path / "small", "--device", "cpu")
    assert told in kindgene("recombine", shared_pool, *ONE, limit, value, *out, "--dry-run").out
    assert not list(tmp_path.iterdir())
    kindgene("recombine", shared_pool, *ONE, limit, value, *out)
    facts = json.loads(kindgene("evaluate", tmp_path / "small", "--dry-run").out)
    assert facts["macs"] <= 400_000 or limit != "--max-macs"
    assert facts["bytes"] <= 180_000 or limit != "--max-bytes"


@pytest.mark.parametrize("form", ["gated", "merged"])
def test_half_precision(kindgene, shared_pool, tmp_path, form):
    out = ("--form", form, "--dtype", "bfloat16", "--out", tmp_path / "small")
    kindgene("recombine", shared_pool, *ONE, *out)
    kindgene("sample", tmp_path / "small", "--steps", 1, "--per-class", 1, "--out", tmp_path / "x.png")
    facts = json.loads(kindgene("evaluate", tmp_path / "small", "--dry-run").out)
    assert 2 * facts["parameters"] <= facts["bytes"] < 2.01 * facts["parameters"]  # and a few ids


def test_a_name_with_a_comma(kindgene, fish_pool, tmp_path):
    for form in ("gated", "merged"):
        name = r"tench\, Tinca tinca"
        kindgene("recombine", fish_pool, "--classes", name, "--form", form, "--out", tmp_path / form)
    assert Pool.from_pretrained(tmp_path / "gated").classes == ("tench, Tinca tinca",)
    assert DiT.from_pretrained(tmp_path / "merged").class_names == ("tench, Tinca tinca",)


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (("--classes", "9"), "no class '9' in this pool"),
        (("--classes", "0,0"), "more than once"),
        (("--classes", ""), "not empty"),
        (("--classes", "0,1", "--form", "merged"), "holds one class"),
        (("--classes", "0", "--form", "melted"), "form must be"),
        (("--classes", "0", "--max-params", "lots"), "got 'lots'"),
        (("--classes", "0", "--max-params", "0"), "above 0"),
        (("--classes", "0", "--max-latency", "nan"), "a time is written"),
        (("--classes", "0", "--max-bytes", "9"), "impossible"),
        (("--classes", "0", "--form", "dense", "--max-macs", "1M"), "one size"),
        (("--classes", "0", "--dtype", "int7"), "dtype must be one of"),
        (("--classes", "0", "--dtype", "int8", "--form", "merged"), 'pool.recombine(..., form="merged", dtype="int8")'),
        (("--classes", "0", "--device", "abacus"), "no device 'abacus'"),
        (("--classes", "0", "--device", "meta"), "meta device"),
        (("--classes", "0", "--max-params", "10"), "impossible"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_leaves_nothing(refused, shared_pool, tmp_path, choice, told):
    assert told in refused("recombine", shared_pool, *choice, "--out", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_touched(refused, shared_pool, pool, merged, tree, tmp_path):
    before = tree(pool)
    assert "not an empty folder" in refused("recombine", shared_pool, "--classes", "0", "--out", pool)
    assert tree(pool) == before
    assert "is not a folder" in refused("recombine", tmp_path / "nowhere", "--classes", "0", "--out", tmp_path / "x")
    assert "not a pool" in refused("recombine", merged, "--classes", "1", "--out", tmp_path / "x")


@pytest.mark.parametrize(("form", "noticed"), [("gated", "flush"), ("merged", "flush"), ("merged", "write")])
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_no_model(refused, full_disk, shared_pool, tmp_path, form, noticed, there):
    full_disk(noticed)
    if there:
        (tmp_path / "model").mkdir()
    told = refused("recombine", shared_pool, *ONE, "--form", form, "--out", tmp_path / "model")
    assert "No space left on device" in told
    assert list(tmp_path.rglob("*")) == ([tmp_path / "model"] if there else [])
