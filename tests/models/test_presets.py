"""The sizes of DiT against the published ones, and the configurations it refuses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kindgene.models.dit import DiT
from kindgene.models.presets import PRESETS

# 10^6 trained parameters and 10^9 multiply-adds (there "Gflops"), from arXiv 2212.09748, appendix.
PUBLISHED = {
    "DiT-S/2": (33, 6.06),
    "DiT-S/4": (33, 1.41),
    "DiT-S/8": (33, 0.36),
    "DiT-B/2": (130, 23.01),
    "DiT-B/4": (130, 5.56),
    "DiT-B/8": (131, 1.42),
    "DiT-L/2": (458, 80.71),
    "DiT-L/4": (458, 19.70),
    "DiT-L/8": (459, 5.01),
    "DiT-XL/2": (675, 118.64),
    "DiT-XL/4": (675, 29.05),
    "DiT-XL/8": (676, 7.39),
}


def on_meta(name: str, **overrides) -> DiT:
    with torch.device("meta"):
        return DiT.from_preset(name, **overrides)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
    model = on_meta(name)
    assert sum(weight.numel() for weight in model.parameters()) == PRESETS[name].parameters
    if name in PUBLISHED:
        # The paper leaves out the fixed positions: with them B/2 would round to 131.
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        assert round(trained / 1e6) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds(name, inputs):
    # Counted for one sample: matrix products, attention and the patch convolution.
    model = on_meta(name)
    counter = FlopCounterMode(display=False)
    with counter:
        model(*(tensor.to("meta") for tensor in inputs(model, batch=1)))
    macs = counter.get_total_flops() / 2
    assert macs / 1e9 == pytest.approx(PUBLISHED[name][1], rel=2e-3, abs=6e-3)
    if name == "DiT-XL/2":
        assert macs == 118_621_421_568


def test_published_preset_is_the_published_configuration():
    config = dict(on_meta("DiT-XL/2").config)
    assert {key: value for key, value in config.items() if not key.startswith("_")} == {
        "input_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 1152,
        "depth": 28,
        "num_heads": 16,
        "mlp_ratio": 4.0,
        "num_classes": 1000,
        "learn_sigma": True,
        "null_row": True,
        "time_frequencies": "dit",
        "schedule": "linear",
        "prediction": "epsilon",
        "class_names": None,
        "low_rank": None,
        "mlp_norm_eps": 1e-6,
    }


def test_preset_overrides():
    model = on_meta("DiT-B/4", num_classes=150, learn_sigma=False, input_size=16)
    assert (model.num_classes, model.null_class, model.out_channels) == (150, 150, 4)
    assert model.pos_embed.shape == (1, 16, 768)
    assert model.config.hidden_size == 768


def test_class_names_and_null():
    model = DiT.from_preset("tiny/2", num_classes=2, class_names=("yes", "no"), null_row=False)
    assert model.class_names == ("yes", "no")
    assert model.null_class is None
    assert model.y_embedder.embedding_table.num_embeddings == 2
    assert DiT.from_preset("tiny/2").class_names is None


@pytest.mark.parametrize("name", ["DiT-B/3", "dit-b/4", "", "XL"])
def test_unknown_presets_are_refused(name):
    with pytest.raises(ValueError, match=r"unknown preset .* DiT-S/2, .*DiT-XL/8, tiny/2"):
        DiT.from_preset(name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 3}, "num_heads 3 does not divide hidden_size 32"),
        ({"hidden_size": 30, "num_heads": 2}, "hidden_size 30 is not a multiple of 4"),
        ({"input_size": 9}, "patch_size 2 does not divide input_size 9"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, found 0"),
        ({"num_classes": 2.0}, r"num_classes must be a whole number of at least 1, found 2\.0"),
        ({"depth": True}, "depth must be a whole number"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"mlp_norm_eps": 0.0}, "mlp_norm_eps"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"schedule": "quadratic"}, "schedule must be one of linear, cosine, found 'quadratic'"),
        ({"prediction": "x0"}, "prediction must be one of epsilon, v"),
        ({"time_frequencies": "127"}, "time_frequencies must be one of dit, diffusers"),
        ({"learn_sigma": "yes"}, "learn_sigma must be one of True, False"),
        ({"class_names": ["a"]}, "class_names has 1 names for num_classes 10"),
        ({"class_names": ["a", "b", "a"], "num_classes": 3}, "class_names repeats 'a'"),
        ({"class_names": "ab", "num_classes": 2}, "class_names must be a list of strings"),
        ({"class_names": [1, 2], "num_classes": 2}, "class_names must be a list of strings"),
        ({"num_haeds": 2}, r"no setting 'num_haeds'; .* did you mean 'num_heads'\?"),
        ({"low_rank": {"blocks.0.attn.kqv": [2]}}, "near it: .*blocks.0.attn.qkv"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        DiT.from_preset("tiny/2", **overrides)


def test_everything_wrong_is_named_at_once():
    with pytest.raises(ValueError, match=r"num_heads 7 .*; hidden_size 30 .*; patch_size 2 .*; class_names has 1"):
        DiT.from_preset("tiny/2", hidden_size=30, num_heads=7, input_size=9, class_names=["a"])
