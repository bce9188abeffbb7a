"""Exports by name: what each takes, and that a failure anywhere leaves nothing."""

import json

import pytest
import torch

from kindgene.interop.export import EXPORTS, export, open_source
from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool

FEW = ("blocks.*.mlp.fc1",)


@pytest.fixture(scope="module")
def pool(make_pool):
    return make_pool(torch.float32, FEW, depth=1)


@pytest.mark.parametrize("to", [to for to in EXPORTS if to != "onnx"])
def test_every_name_exports(pool, make_pool, tmp_path, to):
    source = make_pool(torch.float32, FEW, depth=1, time_frequencies="dit") if to == "dit" else pool
    made = export(source, to, tmp_path / "out", ["tench"], dtype=None, vae=None, batch=None)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record == json.loads(json.dumps(made.to_json()))
    assert record["to"] == to
    assert record["relative_error"] <= 1e-5
    assert record["classes"] == {"tench": 0}


@pytest.mark.parametrize("to", EXPORTS)
def test_a_failure_at_the_end_leaves_nothing(pool, make_pool, tmp_path, monkeypatch, to):
    source = make_pool(torch.float32, FEW, depth=1, time_frequencies="dit") if to == "dit" else pool
    module = __import__(EXPORTS[to][0], fromlist=["write_record"])
    if to == "onnx":  # nothing is translated: it takes long
        pytest.importorskip("onnxruntime")
        monkeypatch.setattr(module, "_write_onnx", lambda *args: None)
        monkeypatch.setattr(module, "onnx_session", lambda path: lambda x, t, y: source.recombine(["tench"])(x, t, y))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_record", full)
    with pytest.raises(OSError, match="No space"):
        export(source, to, tmp_path / "deep" / "out", ["tench"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", EXPORTS)
def test_an_existing_folder_is_not_touched(pool, tmp_path, to):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        export(pool, to, tmp_path, ["tench"])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.usefixtures("nothing_left")
def test_unknown_names_and_foreign_options_are_refused(pool, tmp_path):
    with pytest.raises(ValueError, match=r"unknown export 'onx'; there are dit, .*did you mean 'onnx'"):
        export(pool, "onx", tmp_path / "out", ["tench"])
    for to, option in (("dit", "vae"), ("peft", "form"), ("pipeline", "dtype"), ("onnx", "approximate")):
        with pytest.raises(ValueError, match=f"an export to {to} takes no {option}; it takes"):
            export(pool, to, tmp_path / "out", ["tench"], **{option: "x"})


def test_sources(pool, make_dit, tmp_path):
    pool.save_pretrained(tmp_path / "pool")
    opened = open_source(tmp_path / "pool", ["tench"])
    assert isinstance(opened, Pool)
    assert opened.loaded == ("tench",)
    plain = make_dit(torch.float64)
    plain.save_pretrained(tmp_path / "plain")
    model = open_source(tmp_path / "plain", None)
    assert isinstance(model, DiT)
    assert model.pos_embed.dtype == torch.float64
    with pytest.raises(ValueError, match="neither a pool nor a DiT"):
        open_source(tmp_path, None)


def test_backbones_that_no_export_knows_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    from kindgene.core.config import KindConfig
    from kindgene.core.convert import make_decomposable

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **size))
    kind = KindConfig(num_classes=2, learngene_rank=4, tailor_rank=1, init="svd")
    pool = make_decomposable(vit, kind).decompose(["a", "b"])
    for to in EXPORTS:
        with pytest.raises(ValueError, match="backbone is a ViTModel"):
            export(pool, to, tmp_path / "out", ["a"])
    assert not (tmp_path / "out").exists()
