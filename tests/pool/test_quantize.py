"""Smaller numbers: the measured error of a dtype; int8 through torchao where that is installed (an extra)."""

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

import kindgene.pool.quantize as quantize
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.models.low_rank import LinearParts
from kindgene.pool.budget import ImpossibleBudgetError
from kindgene.pool.noise import without_torchao_noise
from kindgene.pool.plan import Plan
from kindgene.pool.pool import Pool
from kindgene.pool.quantize import dtype_error, random_batch


@pytest.fixture(scope="module")
def pool(dit):
    return nn.Module.to(dit.model(), torch.float32).decompose(list("abcde"))


def bytes_in(value):
    """Of all tensors that a tensor is made of, found by torch's own protocol for such tensors."""
    if not hasattr(value, "__tensor_flatten__"):
        return value.numel() * value.element_size()
    return sum(bytes_in(getattr(value, name)) for name in value.__tensor_flatten__()[0])


def is_int8(value):
    return hasattr(value, "qdata") and value.qdata.dtype == torch.int8


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
    pytest.importorskip("torchao")
    plan = pool.plan(["b"], form=form, dtype="int8")
    model = pool.recombine(plan=plan)
    size = sum(map(bytes_in, model.state_dict().values()))
    assert plan.cost.bytes == size < pool.plan(["b"], form=form).cost.bytes
    assert plan.cost.parameters == sum(value.numel() for value in model.parameters())
    assert 0 < plan.error < 3e-2
    if form == "merged":
        small = pool.plan(["b"], form=form, dtype="int8", max_bytes=int(0.95 * size))
        assert small.cost.bytes <= int(0.95 * size)
        assert small.cost.bytes == sum(map(bytes_in, pool.recombine(plan=small).state_dict().values()))


def test_a_plan_of_int8_survives_its_file_and_builds_the_same_model(pool, dit, tmp_path):
    pytest.importorskip("torchao")
    plan = pool.plan(["b"], form="merged", dtype="int8")
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.dtype == "int8"
    assert f"measured error of int8 {plan.error:.2g} of the output" in str(again)
    one, other = (dit.run(pool.recombine(plan=each), [0] * 6) for each in (plan, again))
    assert torch.equal(one, other)


def test_where_the_inputs_are_unknown_no_error_is_measured(dit):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x)

    kind = KindConfig(
        num_classes=2, learngene_rank=2, tailor_rank=1, targets=["linear"], label_argument=None, init="random"
    )
    pool = make_decomposable(Mine(), kind).decompose(["a", "b"])
    plan = pool.plan(["a"], dtype="bfloat16", backbone=Mine())
    assert (plan.dtype, plan.error) == ("bfloat16", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int8_of_every_backbone_in_every_dtype(backbone, dtype, case_of):
    pytest.importorskip("torchao")
    pool = case_of(backbone, dtype).model().decompose(list("abcde"))
    plan = pool.plan(["b"], form="merged", dtype="int8")
    model = pool.recombine(plan=plan)
    assert plan.cost.bytes == sum(map(bytes_in, model.state_dict().values()))
    assert 0 < plan.error < 3e-2
    assert {value.dtype for value in model.parameters()} == {dtype}


def test_int8_is_every_linear_of_the_targets_and_nothing_else(dit):
    pytest.importorskip("torchao")
    ranks = {"blocks.*": 4, "blocks.0.attn.qkv": [2, 12, 2]}
    pool = nn.Module.to(dit.model(learngene_rank=ranks, tailor_rank=3), torch.float32).decompose(list("abcde"))
    plan = pool.plan(["b"], form="merged", dtype="int8")
    assert plan.ranks["blocks.0.attn.qkv"] == (5, None, 5)
    model = pool.recombine(plan=plan)
    assert isinstance(model.blocks[0].attn.qkv, LinearParts)
    quantized = {name.removesuffix(".weight") for name, value in model.state_dict().items() if is_int8(value)}
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(f"{name}.".startswith(f"{target}.") for target in plan.ranks)
    }
    assert quantized == expected
    assert {f"blocks.0.attn.qkv.parts.{part}" for part in ("0.0", "0.1", "1", "2.0", "2.1")} <= quantized
    assert [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in quantized]


def test_the_smallest_int8_model_has_columns_that_are_no_int8(pool):
    """A pair of rank 1 ends in a matrix of one column."""
    pytest.importorskip("torchao")
    with pytest.raises(ImpossibleBudgetError) as refused:
        pool.plan(["b"], form="merged", dtype="int8", max_bytes=1)
    plan = pool.plan(["b"], form="merged", dtype="int8", max_bytes=refused.value.smallest)
    assert {rank for parts in plan.ranks.values() for rank in parts} == {1}
    model = pool.recombine(plan=plan)
    sizes = {is_int8(m.weight): m.in_features for m in model.blocks[0].attn.proj}
    assert sizes == {True: 16, False: 1}
    assert plan.cost.bytes == sum(map(bytes_in, model.state_dict().values())) == refused.value.smallest
    assert 0 < plan.error < 3e-2


def test_int8_weights_are_within_half_a_scale(pool):
    pytest.importorskip("torchao")
    whole, model = (pool.recombine(["b"], form="dense", dtype=dtype) for dtype in (None, "int8"))
    for target in pool.config.ranks:
        exact, weight = whole.get_submodule(target).weight, model.get_submodule(target).weight
        assert torch.allclose(weight.scale, exact.abs().amax(1, keepdim=True) / 127, rtol=1e-2)
        assert not weight.zero_point.any()
        off = (weight.dequantize() - exact).abs() / weight.scale
        assert 0.1 < off.max() <= 0.51


def test_int8_is_timed(pool):
    pytest.importorskip("torchao")
    plan = pool.plan(["b"], form="merged", dtype="int8", max_latency_ms=60_000.0)
    assert plan.latency_ms > 0
    assert plan.error > 0
    assert (plan.dtype, plan.budget) == ("int8", {"max_latency_ms": 60_000.0})


def test_a_float64_pool_is_not_quantized(saved):
    pool = Pool.from_pretrained(saved)
    with pytest.raises(ValueError, match="needs a pool in one of float32, bfloat16, float16; this one is in float64"):
        pool.plan(["cat"], form="merged", dtype="int8")


def test_a_torchao_that_stores_more_than_is_counted_is_refused(pool, monkeypatch):
    pytest.importorskip("torchao")
    monkeypatch.setattr(quantize, "INT8_ROW_BYTES", 4)
    with pytest.raises(ValueError, match="this version of torchao keeps blocks") as refused:
        pool.recombine(["b"], form="merged", dtype="int8")
    assert "\n" not in str(refused.value)


def test_only_the_noise_of_the_import_is_kept_out_of_the_log(caplog):
    logger = logging.getLogger("torchao")
    with without_torchao_noise():
        logger.warning("Failed to load x.so: no such kernel")
        logger.warning("something else")
    logger.warning("Failed to load y.so: no such kernel")
    assert [record.getMessage()[:16] for record in caplog.records] == ["something else", "Failed to load y"]


def test_torchao_is_not_imported_by_pools():
    """By name, since diffusers and transformers import it wherever it is installed."""
    code = "import kindgene.pool.quantize, sys; print('torchao.quantization' in sys.modules)"
    code = f"import sys; sys.modules['diffusers'] = sys.modules['transformers'] = None; {code}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
