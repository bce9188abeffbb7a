"""The model card: what the pool's own record says, and nothing else."""

import ast
import json
import re
import warnings
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard

from kindgene.pool.card import model_card
from kindgene.pool.pool import Pool


@pytest.fixture(scope="module")
def pool(saved):
    return Pool.from_pretrained(saved)


def blocks(card, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def test_every_number_is_a_count_or_recorded(pool):
    card = model_card(pool.config, pool.learngene)
    shared = sum(value.numel() for value in pool.learngene.values())
    tailor = pool.tailors[0]
    each = sum(value.numel() for value in (*tailor.components.values(), *tailor.row_of("cat").values()))
    facts = {
        f"{shared:,}": "parameters, id",
        f"`{pool.config.learngene_id[:16]}`": "id",
        f"{len(pool.classes)} classes": "count",
        f"{each:,} parameters each": "size",
        '"steps": 123': "record",
        "Weights: raw.": "weights",
        "ICML 2025": "the paper",
        "rank-1": "the method",
        "* 16)": "the example",
    }
    left = card
    for fact in facts:
        assert fact in left
        left = left.replace(fact, "")
    assert re.findall(r"\d+", left) == []


def test_two_cards_differ_in_what_the_pools_record_only(pool):
    """The text around the facts makes no claim about how this pool was trained or how good it is."""
    card = model_card(pool.config, pool.learngene)
    other = replace(
        pool.config,
        weights="ema",
        learngene_id="f" * 64,
        classes={"dog": pool.config.classes["cat"]},
        provenance={"data": "digits"},
    )
    lines = set(card.splitlines()), set(model_card(other, pool.learngene).splitlines())
    different = " ".join(lines[1] - lines[0])
    for fact in ("Weights: ema", "f" * 16, "1 classes", '"dog"', '"data": "digits"'):
        assert fact in different
    assert not re.search(r"FID|accuracy|quality|state.of.the.art|best|pre-trained", card)


def test_the_hub_can_read_it(pool):
    data = ModelCard(model_card(pool.config, pool.learngene)).data
    assert data.library_name == "kindgene"
    assert "DiT" in data.tags


def test_the_record_is_there_in_full(pool):
    config = replace(pool.config, provenance={"b": "é ``` \n", "a": [1, None]})
    (record,) = blocks(model_card(config, pool.learngene), "json")
    assert json.loads(record) == config.provenance
    (empty,) = blocks(model_card(replace(config, provenance={}), pool.learngene), "json")
    assert json.loads(empty) == {}


def test_the_example_runs_as_it_stands(pool_folder):
    (example,) = blocks((pool_folder / "README.md").read_text(encoding="utf-8"), "python")
    scope = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(example.replace("path/to/this/folder", str(pool_folder)).replace("* 16", "* 2"), scope)
    assert scope["model"].class_names == ("cat",)
    assert scope["images"].shape == (2, 1, 4, 4)


@pytest.mark.parametrize("name", ['qu"ote', "back\\slash", "```", "{braces}", "é 文字 🦊", "\u2028"])
def test_any_name_is_quoted_so_that_the_example_names_it(pool, name):
    config = replace(pool.config, classes={name: pool.config.classes["cat"]})
    card = model_card(config, pool.learngene)
    (example,) = blocks(card, "python")
    texts = {node.value for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Constant)}
    assert texts == {"path/to/this/folder", name, 16}


@pytest.mark.parametrize(("backbone", "given"), [("ViTModel", False), ("DiTTransformer2DModel", False), ("Net", True)])
def test_the_example_promises_no_more_than_the_backbone_can(pool, backbone, given):
    (example,) = blocks(model_card(replace(pool.config, backbone=backbone), pool.learngene), "python")
    compile(example, "card", "exec")
    assert "sample" not in example
    assert ("backbone=module" in example) == given


def test_sizes_of_different_ranks_are_a_range_and_long_lists_are_cut(pool):
    entry = pool.config.classes["cat"]
    classes = {f"name {n}": replace(entry, tailor_ranks=2 if n else 3) for n in range(60)}
    card = model_card(replace(pool.config, classes=classes), pool.learngene)
    widths = [sum(pool.learngene[f"{t}.{f}"].shape[1] for f in "uv") + 1 for t in pool.config.ranks]
    components = sum(width * len(parts) for width, parts in zip(widths, pool.config.ranks.values(), strict=True))
    assert f"60 classes, {2 * components + 16:,} to {3 * components + 16:,} parameters each" in card
    assert '"name 49", and 10 more.' in card
    assert "name 50" not in card


def test_a_pool_without_classes_has_a_card(pool):
    card = model_card(replace(pool.config, classes={}), pool.learngene)
    assert "0 classes, 0 parameters each" in card
    compile(blocks(card, "python")[0], "card", "exec")


def test_a_card_is_written_anew_with_every_change(pool_folder, scatter):
    def card():
        return (pool_folder / "README.md").read_text(encoding="utf-8")

    pool = Pool.from_pretrained(pool_folder)
    pool.add(scatter(pool.transfer(["zebra"])))
    assert '"zebra"' in card()
    assert card() == model_card(pool.config, pool.learngene)
    pool.remove(["zebra", "cat"])
    assert "zebra" not in card()
    assert '"cat"' not in card()
    assert torch.equal(Pool.from_pretrained(pool_folder).learngene["pos_embed"], pool.learngene["pos_embed"])
