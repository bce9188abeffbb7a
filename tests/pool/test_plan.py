"""`Plan` as a value: printed, saved, read, used again, and refused where it does not belong."""

import json
from dataclasses import replace

import pytest
import torch

from kindgene.pool.plan import Plan
from kindgene.pool.pool import Pool


@pytest.fixture(scope="module")
def pool(saved):
    return Pool.from_pretrained(saved)


@pytest.fixture(scope="module")
def plan(pool):
    return pool.plan(["Cat", "cat"], max_parameters=8000)


def test_a_plan_survives_its_file_and_builds_the_same_model(pool, plan, tmp_path, dit):
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    labels = [0, 1, 2, 0, 1, 2]
    assert torch.equal(dit.run(pool.recombine(plan=again), labels), dit.run(pool.recombine(plan=plan), labels))
    assert torch.equal(
        dit.run(pool.recombine(plan=plan), labels), dit.run(pool.recombine(["Cat", "cat"], max_parameters=8000), labels)
    )


def test_a_plan_can_be_read(plan):
    text = str(plan)
    assert f"{plan.cost.parameters:,} parameters" in text
    assert "gated model of 2 classes in float64: Cat, cat" in text
    for target in plan.ranks:
        assert target in text
    many = replace(plan, classes=tuple(f"class {number}" for number in range(12)))
    assert "and 2 more" in str(many)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a plan"),
        ({"format_version": 99}, "format version 99"),
        ({"cost": None}, "not a whole plan"),
        ({"surprise": 1}, "not a whole plan"),
        ({"ranks": {"a": 3}}, "not a whole plan"),
        ({"form": "liquid"}, "liquid"),
        ({"dtype": "int7"}, "int7"),
        ({"classes": []}, "no class"),
    ],
)
def test_damaged_files_are_named(plan, tmp_path, change, message):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**plan.to_json(), **change}))
    with pytest.raises(ValueError, match=message):
        Plan.load(path)


def test_what_does_not_fit_the_pool_is_refused(pool, plan):
    target = next(iter(plan.ranks))
    for wrong, message in (
        (replace(plan, learngene_id="0" * 64), "made for the learngene 0000"),
        (replace(plan, classes=("nobody",)), "no class 'nobody'"),
        (replace(plan, form="merged"), "names 2 classes"),
        (replace(plan, ranks={**plan.ranks, "other": (1,)}), "targets"),
        (replace(plan, ranks={**plan.ranks, target: (99,) * len(plan.ranks[target])}), "keeps 99"),
        (replace(plan, ranks={**plan.ranks, target: (0,) * len(plan.ranks[target])}), "keeps 0"),
        (replace(plan, ranks={**plan.ranks, target: (1,) * 9}), "9 ranks"),
        (replace(plan, tailor_ranks={**plan.tailor_ranks, target: (9,) * len(plan.ranks[target])}), "keeps 9"),
    ):
        with pytest.raises(ValueError, match=message):
            pool.recombine(plan=wrong)
    with pytest.raises(ValueError, match="the plan is for"):
        pool.recombine(["cat"], plan=plan)
    with pytest.raises(ValueError, match="name the classes"):
        pool.recombine()


def test_a_dtype_that_overflows_is_refused(dit):
    """A plan's error is a number, which JSON can hold."""
    model = torch.nn.Module.to(dit.model(), torch.float32)
    with torch.no_grad():
        model.get_parameter("module.x_embedder.proj.bias").fill_(1e5)
    pool = model.decompose(list("abcde"))
    assert 0 < pool.plan(["b"], dtype="bfloat16").error < float("inf")
    with pytest.raises(ValueError, match="not finite in float16: use another dtype"):
        pool.plan(["b"], dtype="float16")


def test_int8_behind_a_gate_is_refused_however_the_plan_came_about(pool, plan, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**plan.to_json(), "dtype": "int8"}))
    read = Plan.load(path)
    for act in (lambda: pool.recombine(plan=read), lambda: pool.subset(read)):
        with pytest.raises(ValueError, match="use form='merged' or 'dense'"):
            act()


def test_a_plan_asks_for_its_classes_to_be_loaded(saved, plan):
    with pytest.raises(ValueError, match="not loaded"):
        Pool.from_pretrained(saved, classes=["cat"]).recombine(plan=plan)


def test_a_plan_drops_by_prefix_and_names_its_loss(pool, plan):
    whole = pool.plan(["Cat", "cat"])
    assert whole.loss == 0
    assert whole.measure == plan.measure == "energy"
    assert 0 < plan.loss < 1
    assert plan.budget == {"max_parameters": 8000}
    assert any(kept < full for t in plan.ranks for kept, full in zip(plan.ranks[t], whole.ranks[t], strict=True))
