"""What ``"paper"`` and ``"paper+adaln"`` mean: the very modules that they name on every backbone that is known."""

import pytest

from kindgene.core.config import KindConfig
from kindgene.core.convert import find_targets
from kindgene.core.targets import BACKBONES

PAPER = {
    "DiT": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
    "DiTTransformer2DModel": [
        *("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
        *("ff.net.0.proj", "ff.net.2"),
    ],
    "ViTModel": [*(f"attention.{name}_proj" for name in "qkvo"), "mlp.fc1", "mlp.fc2"],
}
ADALN = {"DiT": ["adaLN_modulation.1"], "DiTTransformer2DModel": ["norm1.linear"]}


def named(dense, targets):
    config = KindConfig(num_classes=5, learngene_rank=2, tailor_rank=1, targets=targets)
    return {target.name: target for target in find_targets(dense, config)}


def test_every_backbone_of_the_method_is_tested(backbone):
    assert type(backbone.dense(1)).__name__ in BACKBONES
    assert PAPER.keys() == BACKBONES.keys()


def test_the_paper_s_targets_are_every_block_s_attention_and_mlp_and_nothing_else(backbone):
    dense = backbone.dense(2)
    expected = {f"{backbone.blocks}.{depth}.{name}" for depth in range(2) for name in PAPER[type(dense).__name__]}
    assert named(dense, "paper").keys() == expected


def test_adaln_adds_every_block_s_modulation(backbone):
    dense = backbone.dense(2)
    kind = type(dense).__name__
    if kind not in ADALN:
        with pytest.raises(ValueError, match=f"{kind} has no adaLN modulation: use targets='paper'"):
            named(dense, "paper+adaln")
        return
    extra = named(dense, "paper+adaln").keys() - named(dense, "paper").keys()
    assert extra == {f"{backbone.blocks}.{depth}.{name}" for depth in range(2) for name in ADALN[kind]}


def test_a_fused_matrix_is_taken_apart_into_query_key_and_value(backbone):
    dense = backbone.dense(1)
    known = BACKBONES[type(dense).__name__]
    for name, target in named(dense, "paper").items():
        assert len(target.ranks) == len(target.tailor_ranks) == (3 if name.endswith(".qkv") else 1)
    assert bool(known.fused) == any(name.endswith(".qkv") for name in named(dense, "paper"))


def test_label_tables_and_the_label_argument_are_known(backbone):
    model = backbone.model(depth=2)
    assert bool(model.label_tables) == backbone.labelled
    assert model.label_argument == BACKBONES[type(model.module).__name__].label_argument
    tables = [name for name, child in backbone.dense(2).named_modules() if type(child).__name__ == "Embedding"]
    assert list(model.label_tables) == tables
