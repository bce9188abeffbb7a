"""Smaller numbers: the measured error of a dtype; int8 through torchao where that is installed (an extra)."""

import sys

import pytest
import torch
from torch import nn

from kindgene.pool.plan import Plan
from kindgene.pool.pool import Pool
from kindgene.pool.quantize import dtype_error, random_batch


@pytest.fixture(scope="module")
def pool(dit):
    return nn.Module.to(dit.model(), torch.float32).decompose(list("abcde"))


def test_the_error_is_the_relative_change_of_the_output():
    one, other = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    batches = [[torch.randn(4, 3)], [torch.randn(4, 3)]]
    with torch.no_grad():
        before, after = (torch.cat([layer(*batch) for batch in batches]) for layer in (one, other))
    expected = ((after - before).norm() / before.norm()).item()
    assert dtype_error(one, other, batches) == pytest.approx(expected, rel=1e-5)
    assert dtype_error(one, one, batches) == 0
    half = nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    half.load_state_dict(one.state_dict())
    assert 0 < dtype_error(one, half, batches) < 1e-2


def test_every_backbone_is_measured_on_the_same_random_images(double):
    model = double.model()
    batch = random_batch(double.backbone.name, model, 3)
    assert {len(value) for value in batch.values()} == {16}
    again = random_batch(double.backbone.name, model, 3)
    assert all(torch.equal(value, again[name]) for name, value in batch.items())
    assert dtype_error(model, model, [batch]) == 0


@pytest.mark.parametrize("form", ["gated", "merged"])
def test_a_plan_names_its_dtype_s_error(pool, form):
    assert pool.plan(["b"], form=form).error is None
    plan = pool.plan(["b"], form=form, dtype="bfloat16")
    assert 1e-4 < plan.error < 2e-2
    assert "measured error of bfloat16" in str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(4, 1, 4, 4, generator=generator), torch.arange(4) * 200, torch.zeros(4, dtype=torch.long))
    on_data = pool.plan(["b"], form=form, dtype="bfloat16", calibration=[batch]).error
    assert on_data != plan.error
    assert 1e-4 < on_data < 2e-2


def test_int8_is_for_plain_models_and_needs_torchao(pool, monkeypatch):
    with pytest.raises(ValueError, match="int8' is for plain models"):
        pool.plan(["b"], dtype="int8")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"pip install 'kindgene\[int8\]'"):
        pool.plan(["b"], form="merged", dtype="int8")


@pytest.mark.parametrize("form", ["merged", "dense"])
def test_int8_bytes_are_exact_and_its_error_is_small(pool, form):
    tensors = pytest.importorskip("torchao.quantization")
    plan = pool.plan(["b"], form=form, dtype="int8")
    model = pool.recombine(plan=plan)
    size = 0
    for value in model.state_dict().values():
        if isinstance(value, tensors.Int8Tensor):
            size += value.qdata.numel() + value.scale.numel() * value.scale.element_size()
        else:
            size += value.numel() * value.element_size()
    assert plan.cost.bytes == size < pool.plan(["b"], form=form).cost.bytes
    assert 0 < plan.error < 3e-2
    if form == "merged":
        small = pool.plan(["b"], form=form, dtype="int8", max_bytes=int(0.95 * size))
        assert small.cost.bytes <= int(0.95 * size)


def test_a_plan_of_int8_survives_its_file(saved, tmp_path):
    plan = Pool.from_pretrained(saved).plan(["cat"], form="merged")
    value = {**plan.to_json(), "dtype": "int8", "error": 0.01}
    assert Plan.from_json(value).dtype == "int8"
    assert "measured error of int8 0.01" in str(Plan.from_json(value))
