"""The cost model is exact: against the built model, an operator-level counter, and the file that is written."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kindgene.pool.backbones import example_inputs
from kindgene.pool.cost import CostModel, probe_backbone
from kindgene.pool.latency import forward
from kindgene.pool.planner import _items, energy
from kindgene.pool.pool import Pool

NAMES = ["a", "b", "c", "d", "e"]


def in_place(y, left, right, *args, **kwargs):
    return 2 * left[0] * left[1] * left[2] * right[2]


def counted_macs(kind, model):
    """Multiply-adds of one forward of one sample, counted operator by operator."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place})
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward(model, example_inputs(kind, getattr(model, "module", model)))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("form", "share"), [("gated", 1), ("gated", 0.8), ("merged", 1), ("merged", 0.8), ("dense", 1)]
)
def test_parameters_and_multiply_adds_are_those_of_the_model(double, form, share):
    pool = double.model(gate_map=[0, 1, 1, 2, 0]).decompose(NAMES)
    classes = ["c", "a"] if form == "gated" else ["c"]
    whole = pool.plan(classes, form=form)
    limit = None if share == 1 else int(share * whole.cost.parameters)
    plan = pool.plan(classes, form=form, max_parameters=limit)
    model = pool.recombine(plan=plan)
    assert plan.cost.parameters == sum(value.numel() for value in model.parameters())
    assert plan.cost.macs == counted_macs(double.backbone.name, model)
    assert plan.cost.bytes == 8 * plan.cost.parameters


@pytest.mark.parametrize("limit", ["max_parameters", "max_macs", "max_bytes"])
def test_every_budget_is_kept_to_within_a_component(dit, limit):
    pool = dit.model().decompose(NAMES)
    name = limit.removeprefix("max_")
    whole = getattr(pool.plan(["b", "d"]).cost, name)
    wanted = int(0.85 * whole)
    found = getattr(pool.plan(["b", "d"], **{limit: wanted}).cost, name)
    assert 0.8 * wanted < found <= wanted


def test_bytes_are_those_of_the_file_that_is_written(dit, tmp_path):
    pool = dit.model().decompose(NAMES)
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float64", 8)):
        plan = pool.plan(["b"], form="merged", dtype=dtype, max_bytes=size * 7000)
        folder = tmp_path / dtype
        pool.recombine(plan=plan).save_pretrained(folder)
        data = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
        header = int.from_bytes(data[:8], "little")
        assert plan.cost.bytes == len(data) - 8 - header <= size * 7000


def test_bytes_of_a_gated_model_are_those_of_its_own_pool(dit, tmp_path):
    pool = dit.model().decompose(NAMES)
    plan = pool.plan(["b", "d"], max_parameters=8000, dtype="float32")
    folder = pool.subset(plan).save_pretrained(tmp_path / "pool")
    total = 0
    for path in folder.rglob("*.safetensors"):
        data = path.read_bytes()
        total += len(data) - 8 - int.from_bytes(data[:8], "little")
    assert total == plan.cost.bytes


def test_a_part_that_is_cheaper_dense_is_kept_dense(dit):
    pool = dit.model(learngene_rank={"blocks.*": 4, "blocks.0.attn.qkv": [16, 4, 16]}).decompose(NAMES)
    plan = pool.plan(["a", "b"])
    assert plan.ranks["blocks.0.attn.qkv"] == (None, 4, None)
    model = pool.recombine(plan=plan)
    assert sum(value.numel() for value in model.parameters()) == plan.cost.parameters
    labels = [0, 1, 2, 0, 1, 2]
    expected = pool.to_model()
    with torch.no_grad():
        dit.check(dit.run(model, labels), dit.run(expected, [0, 1, 5, 0, 1, 5]))
    with pytest.raises(ValueError, match="cannot be taken apart again"):
        model.decompose(["a", "b"])


def test_int8_bytes_are_a_byte_a_weight_and_five_a_row(dit):
    pool = dit.model().decompose(NAMES)
    part = Pool._pieces(pool, ["a"]).parts("merged")[0]
    assert (part.inputs, part.outputs) == (16, 16)
    costs = CostModel(pool.config, pool.learngene, [part], 1, gated=False, itemsize=4, int8=True)
    assert costs.learngene_bytes(part, None) == 16 * 16 + 16 * (4 + 1)
    assert costs.learngene_bytes(part, 3) == 3 * (16 + 16) + (3 + 16) * (4 + 1)
    assert costs.learngene_bytes(part, 1) == (16 + 5) + 16 * 4  # one column stays as it is
    assert costs.learngene_numbers(part, 3) == 3 * (16 + 16)
    rest = costs.total([None], []).bytes - costs.learngene_bytes(part, None)
    assert rest == 4 * costs.fixed > 0


def test_a_thin_pair_whose_scales_make_it_larger_is_no_choice_in_int8(dit):
    """Rank 7 of 16 x 16: 224 numbers of 256, and 339 bytes of 336. Every step must free something of every limit."""
    pool = dit.model(learngene_rank=4, tailor_rank=3).decompose(NAMES)
    parts = Pool._pieces(pool, ["a"]).parts("merged")
    firsts = set()
    for int8 in (False, True):
        costs = CostModel(pool.config, pool.learngene, parts, 1, gated=False, itemsize=4, int8=int8)
        for part, item in zip(parts, _items(costs, energy(parts), "merged", macs=True), strict=True):
            assert (item.costs[1:] < item.costs[:-1]).all()
            if (part.inputs, part.outputs) == (16, 16):
                firsts.add((int8, item.ranks[0]))
    assert firsts == {(False, 7), (True, None)}


def test_the_probe_counts_tokens_and_needs_no_memory(dit):
    pool = dit.model().decompose(NAMES)
    probe = probe_backbone(pool.config)
    assert probe.rows["blocks.0.attn.qkv"] == 4  # 2 x 2 patches
    assert probe.rows["blocks.0.adaLN_modulation.1"] == 1


def test_a_backbone_whose_inputs_are_unknown_has_no_multiply_adds(dit):
    pool = dit.model().decompose(NAMES)
    pool.config = type(pool.config)(**{**pool.config.__dict__, "backbone": "Mine"})

    class Mine(type(dit.dense(1))):
        pass

    backbone = dit.dense(1)
    backbone.__class__ = Mine
    assert pool.plan(["a"], backbone=backbone).cost.macs is None
    with pytest.raises(ValueError, match="cannot be counted"):
        pool.plan(["a"], max_macs=10_000, backbone=backbone)


def test_the_cost_is_plain_data(dit):
    cost = dit.model().decompose(NAMES).plan(["a"]).cost
    assert json.loads(json.dumps(cost.to_dict())) == cost.to_dict()
