"""Backbones that a pool rebuilds by itself, from plain settings, and those that it must be given."""

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.models.dit import DiT
from kindgene.pool.backbones import TABLE, Unfilled, build_backbone, describe_backbone, floating_dtype
from kindgene.pool.pool import Pool


class Net(nn.Module):
    """A backbone that no pool knows."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(8, 6), nn.Embedding(4, 6)

    def forward(self, x, y):
        return self.layer(x) + self.table(y)


def decomposable_net(kind=Net):
    torch.manual_seed(0)
    settings = {"targets": ["layer"], "class_rows": ["table"], "label_argument": "y", "init": "random"}
    return make_decomposable(kind().double(), KindConfig(num_classes=3, learngene_rank=3, tailor_rank=2, **settings))


def test_the_tests_know_every_backbone_of_ours(table):
    assert table.keys() == TABLE.keys()


def test_a_backbone_is_built_again_from_json(backbone):
    module = backbone.build(5)
    kind, config = describe_backbone(module)
    assert kind == backbone.name
    back = build_backbone(kind, json.loads(json.dumps(config)), list("abcde"), [], dtype=torch.float64)
    assert type(back) is type(module)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    assert {key: value.shape for key, value in back.state_dict().items()} == shapes
    assert {value.dtype for value in back.parameters()} == {torch.float64}
    assert describe_backbone(back) == (kind, config)


def test_no_class_name_and_no_code_is_part_of_a_description(backbone):
    kind, config = describe_backbone(backbone.build(5))
    assert "secret" not in json.dumps(config)
    assert not [key for key in config if key.startswith("_") or "implementation" in key]
    # Whatever a config.json that someone else wrote asks for, only the built-in attention runs.
    asked = {**config, "attn_implementation": "kernels-community/flash-attn", "_attn_implementation": "x/y"}
    back = build_backbone(kind, asked, list("abcde"), [], dtype=torch.float32)
    assert describe_backbone(back) == (kind, config)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"add_pooling_layer": True, "use_mask_token": True}, {"add_pooling_layer": False, "use_mask_token": False}],
)
def test_a_vit_keeps_what_its_config_does_not_tell(arguments):
    from transformers import ViTConfig, ViTModel

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    module = ViTModel(ViTConfig(**size, image_size=4, patch_size=2), **arguments)
    back = build_backbone(*describe_backbone(module), ["a"], [], dtype=torch.float32)
    assert back.state_dict().keys() == module.state_dict().keys()


def test_a_dit_says_what_it_is_for(backbone):
    module = DiT(input_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, class_names=["a"], num_classes=1)
    kind, config = describe_backbone(module)
    table, low_rank = "y_embedder.embedding_table", {"blocks.0.attn.proj": [3]}
    for given in (None, module):
        two = build_backbone(kind, config, ["x", "y"], [table], given, dtype=torch.float32)
        assert (two.num_classes, two.null_class, two.class_names) == (2, 2, ("x", "y"))
        assert two.y_embedder.embedding_table.num_embeddings == 3
        plain = build_backbone(
            kind, config, ["x"], [table], given, dtype=torch.float32, null_row=False, low_rank=low_rank
        )
        assert (plain.num_classes, plain.null_class, plain.config.low_rank) == (1, None, low_rank)
        assert plain.y_embedder.embedding_table.num_embeddings == 1
        assert type(plain.blocks[0].attn.proj) is nn.Sequential
    assert module.class_names == ("a",)
    assert type(module.blocks[0].attn.proj) is nn.Linear


def test_label_tables_are_resized_and_drop_no_labels(backbone):
    module = backbone.build(5)
    tables = [name for name, child in module.named_modules() if type(child) is nn.Embedding]
    back = build_backbone(*describe_backbone(module), ["a", "b"], tables, dtype=torch.float32).train()
    assert {back.get_submodule(name).num_embeddings for name in tables} == ({3} if tables else set())
    assert bool(tables) == (backbone.name != "ViTModel")
    assert not [child for child in back.modules() if getattr(child, "dropout_prob", 0)]


class Drawn(TorchDispatchMode):
    """Counts the numbers that are drawn."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.uniform_, torch.ops.aten.normal_) and not args[0].is_meta:
            self.numbers += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_weights_that_are_replaced_are_not_drawn_first(pool_folder):
    pool = Pool.from_pretrained(pool_folder)
    before = torch.get_rng_state()
    with Drawn() as drawn:
        model = pool.recombine(["cat", "Cat"])
        plain = pool.recombine(["cat"], form="merged")
    # The patch embedding is drawn as a flat view of its data, which does not look like a parameter.
    assert drawn.numbers == 2 * model.module.x_embedder.proj.weight.numel()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(value.isfinite().all() for whole in (model, plain) for value in whole.parameters())
    with Drawn() as drawn:
        DiT(input_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=1)
    assert drawn.numbers > 1000


def test_only_parameters_are_left_unfilled():
    with Unfilled():
        layer = nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.ones(2, 2))
            for fill in (nn.init.xavier_uniform_, nn.init.zeros_, torch.Tensor.normal_):
                fill(layer.weight)
        table = torch.zeros(3).fill_(2.0)
    assert torch.equal(layer.weight, torch.ones(2, 2))
    assert torch.equal(table, torch.full((3,), 2.0))


@pytest.mark.parametrize("change", [{"depth": 2}, {"hidden_size": 32}])
def test_settings_of_another_model_are_refused_when_the_tensors_are_put_in(pool_folder, change):
    path = pool_folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["backbone_config"] = {**config["backbone_config"], **change}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="learngene: "):
        Pool.from_pretrained(pool_folder).recombine(["cat"])


BROKEN = [
    ("DiT", {"hidden_size": "16"}),
    ("DiT", {"unknown": 1}),
    ("DiT", {"depth": None}),
    ("DiTTransformer2DModel", {"num_attention_heads": "x"}),
    ("DiTTransformer2DModel", {"num_attention_heads": -1}),
    ("DiTTransformer2DModel", {"num_layers": None}),
    ("DiTTransformer2DModel", {"sample_size": []}),
    ("ViTModel", {"hidden_size": "16"}),
    ("ViTModel", {"num_attention_heads": 0}),
    ("ViTModel", {"hidden_act": "unheard of"}),
    ("ViTModel", {"hidden_size": -1}),
]


@pytest.mark.parametrize(("kind", "change"), BROKEN)
def test_settings_that_make_no_sense_are_refused_in_one_line(table, kind, change):
    _, config = describe_backbone(table[kind].build(5))
    with pytest.raises(ValueError, match=kind) as refused:
        build_backbone(kind, {**config, **change}, list("abcde"), [], dtype=torch.float32)
    assert "\n" not in str(refused.value)
    assert next(iter(change)) in str(refused.value) or "backbone_config" in str(refused.value)


@pytest.mark.parametrize("table", ["nowhere", "blocks.0.attn.proj", ""])
def test_a_label_table_that_the_backbone_lacks_is_named(backbone, table):
    with pytest.raises(ValueError, match=f"label table {table} is no nn.Embedding of this {backbone.name}"):
        build_backbone(*describe_backbone(backbone.build(5)), ["a"], [table], dtype=torch.float32)


def test_an_unknown_backbone_is_given_as_a_module(tmp_path):
    model = decomposable_net()
    pool = Pool.from_pretrained(model.decompose(["a", "b", "c"]).save_pretrained(tmp_path / "pool"))
    assert (pool.config.backbone, pool.config.backbone_config) == ("Net", {})
    for build in (pool.to_model, lambda: pool.recombine(["a"]), lambda: pool.recombine(["a"], form="merged")):
        with pytest.raises(ValueError, match=r"backbone Net is not one that pools rebuild .*pass backbone=module"):
            build()
    x, given = torch.randn(3, 8, dtype=torch.float64), Net().double()
    before = given.layer.weight.clone()
    small = pool.recombine(["c", "a"], backbone=given)
    assert torch.allclose(small(x, torch.tensor([0, 1, 2])), model(x, torch.tensor([2, 0, 3])))
    merged = pool.recombine(["b"], form="merged", backbone=given)
    assert type(merged) is Net
    assert torch.allclose(merged(x, torch.zeros(3, dtype=torch.long)), model(x, torch.tensor([1, 1, 1])))
    assert pool.to_model(backbone=given).num_classes == 3
    assert torch.equal(given.layer.weight, before)
    with pytest.raises(ValueError, match="this pool was made from a Net; backbone= is a Linear"):
        pool.recombine(["a"], backbone=nn.Linear(8, 6))


@pytest.mark.parametrize("name", list(TABLE))
def test_another_class_of_a_known_name_is_not_taken_for_it(name, tmp_path):
    kind = type(name, (Net,), {"__module__": "somewhere"})
    model = decomposable_net(kind)
    pool = Pool.from_pretrained(model.decompose(["a", "b", "c"]).save_pretrained(tmp_path / "pool"))
    assert pool.config.backbone == f"somewhere.{name}"
    with pytest.raises(ValueError, match="is not one that pools rebuild"):
        pool.recombine(["a"])
    x = torch.randn(1, 8, dtype=torch.float64)
    small = pool.recombine(["b"], backbone=kind().double())
    assert torch.allclose(small(x, torch.tensor([0])), model(x, torch.tensor([1])))


def test_a_given_backbone_of_a_known_class_is_used(dit, saved):
    pool = Pool.from_pretrained(saved, classes=["cat", "Cat"])
    given = dit.dense(7)
    marked = given.blocks[0].attn
    marked.mark = "own"
    small = pool.recombine(["Cat", "cat"], backbone=given)
    assert small.module.blocks[0].attn.mark == "own"
    assert (small.config.num_classes, list(small.config.class_names)) == (2, ["Cat", "cat"])
    assert torch.equal(dit.run(small, [0, 1, 2] * 2), dit.run(pool.recombine(["Cat", "cat"]), [0, 1, 2] * 2))
    merged = pool.recombine(["cat"], form="merged", backbone=given)
    assert merged.null_class is None
    assert merged.class_names == ("cat",)
    assert torch.equal(dit.run(merged, [0] * 6), dit.run(pool.recombine(["cat"], form="merged"), [0] * 6))


def test_a_state_s_dtype_is_that_of_its_weights():
    state = {"count": torch.zeros(1, dtype=torch.int64), "x": torch.zeros(1, dtype=torch.bfloat16)}
    assert floating_dtype(state) is torch.bfloat16
