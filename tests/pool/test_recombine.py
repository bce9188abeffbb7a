"""Recombination through `Pool.recombine`: both forms, ids as asked for, budgets kept by dropping what is last."""

import re
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from kindgene.core.components import compose, truncate
from kindgene.core.decomposable import Decomposable
from kindgene.core.pieces import layer_components
from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool


@pytest.fixture(scope="module")
def pool(saved):
    return Pool.from_pretrained(saved)


@pytest.fixture(scope="module")
def uneven(dit, names):
    """A pool in memory with shared tailors, tailors of several ranks, and other ranks in every part."""
    ranks = {"blocks.*": 6, "blocks.0.attn.qkv": [5, 3, 7]}
    uneven = dit.model(learngene_rank=ranks, tailor_rank=3, gate_map=[0, 1, 0, 2, 1]).decompose(names)
    wide = uneven.transfer(["wide"], tailor_rank=5, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        wide.bank.labels.rows.normal_(generator=torch.Generator().manual_seed(8))
    uneven.add(wide)
    return uneven


def count(model):
    return sum(value.numel() for value in model.parameters())


def smallest(pool, classes, form):
    """The smallest number of parameters, as the refusal of an impossible budget names it."""
    with pytest.raises(ValueError, match=r"smallest\D*[\d,]+") as refused:
        pool.recombine(classes, form=form, max_parameters=10)
    assert "\n" not in str(refused.value)
    return int(re.search(r"smallest\D*([\d,]+)", str(refused.value))[1].replace(",", ""))


def shared_parts(pool, target):
    return layer_components(pool.learngene, target, pool.config.ranks[target])


def own_parts(pool, name, target):
    tailor = next(tailor for tailor in pool.tailors if name in tailor.classes)
    return layer_components(tailor.components, target, pool.config.tailor_ranks_of(name)[target])


# Forms.


def test_ids_are_positions_in_the_request(pool, dit):
    model = pool.recombine(["e\u0301", "cat", "Cat"])
    assert (model.num_classes, model.null_class) == (3, 3)
    assert model.class_names == ("e\u0301", "cat", "Cat")
    assert list(model.config.class_names) == ["e\u0301", "cat", "Cat"]
    turned = pool.recombine(["Cat", "cat", "e\u0301"])
    assert torch.equal(dit.run(model, [0, 1, 2, 3, 0, 1]), dit.run(turned, [2, 1, 0, 3, 2, 1]))
    with pytest.raises(ValueError, match=r"labels must be 0\.\.2, or 3 for the null class; found 4"):
        dit.run(model, [4] * 6)


@pytest.mark.parametrize("form", ["auto", "gated", "merged", "dense"])
def test_a_recombined_model_is_static(pool, form):
    model = pool.recombine(["cat"], form=form)
    assert not model.training
    assert not [name for name, value in model.named_parameters() if value.requires_grad]
    assert isinstance(model, Decomposable) == (form in ("auto", "gated"))


def test_classes_that_share_a_tailor_share_it_in_the_model(uneven, dit):
    model = uneven.recombine(["../../x", "cat", "Cat"])
    assert model.kind.tailor_of == [0, 0, 1]
    assert model.bank.tailors.count == 2
    both = dit.run(model, [0] * 6), dit.run(model, [1] * 6)
    assert not torch.equal(*both)  # label rows differ
    alone = uneven.recombine(["cat"])
    assert torch.equal(dit.run(alone, [0, 1] * 3), dit.run(model, [1, 3] * 3))


def test_a_merged_model_is_plain_linear_layers_whichever_is_cheaper(pool, uneven):
    merged = pool.recombine(["cat"], form="merged")
    assert type(merged) is DiT
    assert (merged.null_class, merged.class_names) == (None, ("cat",))
    assert merged.y_embedder.embedding_table.num_embeddings == 1
    # 4 + 4 components of a 16 x 16 matrix cost as much as the matrix, of a 32 x 16 one less.
    assert type(merged.blocks[0].attn.proj) is nn.Linear
    assert [layer.weight.shape for layer in merged.blocks[0].mlp.fc1] == [(8, 16), (32, 8)]
    dense = uneven.recombine(["wide"], form="dense")
    layers = [dense.get_submodule(name) for name in uneven.config.ranks]
    assert {type(layer) for layer in layers} == {nn.Linear}
    for name in uneven.config.ranks:
        pairs = zip(shared_parts(uneven, name), own_parts(uneven, "wide", name), strict=True)
        whole = torch.cat([compose(shared) + compose(own) for shared, own in pairs])
        assert torch.allclose(dense.get_submodule(name).weight, whole)


def test_more_components_than_a_matrix_has_rows_are_merged_exactly(dit, names):
    model = dit.model(learngene_rank=12, tailor_rank=9)
    pool = model.decompose(names)
    with torch.no_grad():
        for form in ("merged", "dense"):
            dit.check(dit.run(pool.recombine(["Cat"], form=form), [0] * 6), dit.run(model, [1] * 6))
        dit.check(dit.run(pool.recombine(["Cat"]), [0, 1] * 3), dit.run(model, [1, 5] * 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "thin"}, "form must be 'auto', 'gated'"),
        ({"form": None}, "form must be 'auto', 'gated'"),
        ({"form": "merged"}, r"form='merged' holds one class; 2 were asked for"),
        ({"form": "dense"}, r"form='dense' holds one class; 2 were asked for"),
        *(({"max_parameters": bad}, "max_parameters must be") for bad in (0, -1, 1.5, True, "3", float("nan"))),
    ],
)
def test_impossible_requests_are_refused(pool, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        pool.recombine(["cat", "Cat"], **options)
    assert "\n" not in str(refused.value)


def test_a_saved_merged_model_runs_without_the_method(pool, dit, tmp_path):
    merged = pool.recombine(["Cat"], form="merged")
    merged.save_pretrained(tmp_path / "merged")
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    program = f"""
import sys
for name in ("core", "pool", "training"):
    sys.modules["kindgene." + name] = None
import safetensors.torch, torch
from kindgene import DiT
torch.set_num_threads(1)
model = DiT.from_pretrained({str(tmp_path / "merged")!r}, torch_dtype=torch.float64).eval()
x = safetensors.torch.load_file({str(tmp_path / "x.safetensors")!r})["x"]
with torch.no_grad():
    y = model(x, torch.arange(6) * 150, torch.zeros(6, dtype=torch.long))
safetensors.torch.save_file({{"y": y}}, {str(tmp_path / "y.safetensors")!r})
assert model.class_names == ("Cat",)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = merged(x, torch.arange(6) * 150, torch.zeros(6, dtype=torch.long))
    dit.check(safetensors.torch.load_file(tmp_path / "y.safetensors")["y"], expected)


# Budgets.

REQUESTS = [("gated", ["cat"]), ("gated", ["wide", "cat", "../../x"]), ("merged", ["cat"]), ("merged", ["wide"])]


@pytest.mark.parametrize(("form", "classes"), REQUESTS)
def test_budgets_are_kept_and_exact_at_both_ends(uneven, dit, form, classes):
    whole = uneven.recombine(classes, form=form)
    least = smallest(uneven, classes, form)
    assert least < count(whole)
    assert count(uneven.recombine(classes, form=form, max_parameters=least)) == least
    with pytest.raises(ValueError, match="smallest"):
        uneven.recombine(classes, form=form, max_parameters=least - 1)
    before = least
    for share in (0.01, 0.2, 0.4, 0.6, 0.8, 0.99):
        budget = least + int(share * (count(whole) - least))
        found = count(uneven.recombine(classes, form=form, max_parameters=budget))
        assert before <= found <= budget
        before = found
    assert before > least
    with torch.no_grad():
        for budget in (count(whole), 10**9):
            same = uneven.recombine(classes, form=form, max_parameters=budget)
            assert count(same) == count(whole)
            dit.check(dit.run(same, [0] * 6), dit.run(whole, [0] * 6))


def test_a_gated_budget_keeps_the_first_components_of_each_part(uneven):
    classes = ["wide", "cat", "../../x"]
    full = count(uneven.recombine(classes))
    model = uneven.recombine(classes, max_parameters=int(0.7 * full))
    dropped = 0
    rows = [model.bank.tailors.row(index) for index in range(model.bank.tailors.count)]
    assert len(rows) == 2
    for target, layer in model.layers.items():
        for shared, kept in zip(shared_parts(uneven, target), layer.learngene(), strict=True):
            assert 1 <= kept.rank <= shared.rank
            dropped += shared.rank - kept.rank
            assert all(torch.equal(a, b) for a, b in zip(kept, truncate(shared, kept.rank), strict=True))
        for name, row in zip(("wide", "cat"), rows, strict=True):
            for own, kept in zip(own_parts(uneven, name, target), layer.tailor(row), strict=True):
                least = min(own.rank, kept.rank)
                dropped += own.rank - least
                assert all(torch.equal(a, b) for a, b in zip(truncate(kept, least), truncate(own, least), strict=True))
                assert not kept.s[least:].any()
    assert dropped > 0
    assert torch.equal(model.bank.labels.rows[1], uneven.recombine(["cat"]).bank.labels.rows[0])


def test_a_merged_budget_keeps_the_best_part_of_each_matrix(uneven):
    """Eckart and Young: what a thin pair misses of learngene and tailor together is the tail of the spectrum."""
    full = count(uneven.recombine(["wide"], form="merged"))
    merged = uneven.recombine(["wide"], form="merged", max_parameters=int(0.8 * full))
    thin = 0
    for target in uneven.config.ranks:
        pairs = list(zip(shared_parts(uneven, target), own_parts(uneven, "wide", target), strict=True))
        layer = merged.get_submodule(target)
        parts = [layer] if len(pairs) == 1 or type(layer) is nn.Linear else list(layer.parts)
        wholes = [compose(shared) + compose(own) for shared, own in pairs]
        if type(layer) is nn.Linear:
            wholes = [torch.cat(wholes)]
        for whole, part in zip(wholes, parts, strict=True):
            if type(part) is nn.Linear:
                assert torch.allclose(part.weight, whole)
                continue
            rank = part[0].out_features
            missed = torch.linalg.matrix_norm(part[1].weight @ part[0].weight - whole)
            tail = torch.linalg.svdvals(whole)[rank:].square().sum().sqrt()
            assert torch.allclose(missed, tail)
            thin += 1
    assert thin > 0


def test_a_budget_does_not_change_the_pool(uneven):
    before = [tailor.to_bytes("") for tailor in uneven.tailors]
    least = smallest(uneven, ["cat", "wide"], "gated")
    uneven.recombine(["cat", "wide"], max_parameters=least + 100)
    assert [tailor.to_bytes("") for tailor in uneven.tailors] == before
