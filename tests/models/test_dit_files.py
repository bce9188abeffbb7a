"""DiT on disk: what is saved comes back, what does not fit is refused, and no pickle is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kindgene.models.dit import DiT

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_classes": 3, "class_names": ["a/b", "../x", "é"]},
        {"num_classes": 1, "null_row": False},
        {"num_classes": 1},
        {"low_rank": {"blocks.0.attn.qkv": [4, 4, None], "blocks.1.adaLN_modulation.1": [3]}},
        {"learn_sigma": True, "prediction": "v", "schedule": "cosine"},
    ],
)
def test_save_and_load_round_trip(tmp_path, overrides, randomised, inputs):
    model = randomised(DiT.from_preset("tiny/2", **overrides))
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]

    loaded = DiT.from_pretrained(tmp_path)
    assert loaded.weights_loaded is True
    assert loaded.class_names == model.class_names
    assert loaded.null_class == model.null_class
    assert loaded.config.low_rank == model.config.low_rank
    x, t, y = inputs(model)
    assert torch.equal(loaded(x, t, y), model(x, t, y))


def test_load_in_another_dtype_and_with_info(tmp_path):
    DiT.from_preset("tiny/2").save_pretrained(tmp_path)
    model, info = DiT.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, output_loading_info=True)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert info["missing_keys"] == []


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.0.attn.qkv.bias"), "blocks.0.attn.qkv.bias is missing"),
        (lambda state: state.update(extra=torch.ones(1)), "extra is unexpected"),
        (
            lambda state: state.update({"final_layer.linear.bias": torch.ones(7)}),
            r"final_layer.linear.bias has shape \[7\], expected \[4\]",
        ),
        (lambda state: [state.pop(key) for key in list(state)[:9]], "is missing.* and 4 more"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message, low_cpu_mem_usage):
    DiT.from_preset("tiny/2").save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    change(state)
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        DiT.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


def test_a_pickle_or_a_torn_file_is_never_read(tmp_path):
    model = DiT.from_preset("tiny/2")
    model.save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="Unable to load weights"):
        DiT.from_pretrained(tmp_path)

    (tmp_path / WEIGHTS).unlink()
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match=WEIGHTS):
        DiT.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{"use_safetensors": False}, {"ignore_mismatched_sizes": True}])
def test_lenient_loading_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match="read strictly"):
        DiT.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "DiTTransformer2DModel"}, "of a DiTTransformer2DModel, not of a DiT"),
        ({"dropout": 0.1}, "no setting 'dropout'"),
        ({"num_heads": 5}, "num_heads 5 does not divide"),
    ],
)
def test_foreign_configurations_are_refused(tmp_path, change, message):
    DiT.from_preset("tiny/2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        DiT.from_pretrained(tmp_path)
