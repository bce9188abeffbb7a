"""torch.export and ONNX: the program runs without kindgene, at any batch size or at the fixed one."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from kindgene.interop.to_program import export_onnx, export_torch, onnx_session

FEW = ("blocks.*.attn.qkv", "blocks.*.mlp.fc1")
FORMS = [  # merged and dense are the same operations, and one of either precision
    ("gated", ["goldfish", "tench"], torch.float64),
    ("gated", ["goldfish", "tench"], torch.float32),
    ("merged", ["a.b/c"], torch.float64),
    ("dense", ["a.b/c"], torch.float32),
]
ALONE = """
import sys
sys.modules["kindgene"] = sys.modules["diffusers"] = None
import torch
from safetensors.torch import load_file, save_file
model = torch.export.load(sys.argv[1]).module()
given = load_file(sys.argv[2])
save_file({"output": model(given["x"], given["t"], given["y"])}, sys.argv[3])
"""


def labels_of(form, batch):
    return torch.arange(batch) % 3 if form == "gated" else torch.zeros(batch, dtype=torch.long)  # 2: null


@pytest.mark.parametrize(("form", "classes", "dtype"), FORMS)
def test_a_torch_program_of_any_batch(make_pool, inputs, error, limit, tmp_path, form, classes, dtype):
    pool = make_pool(dtype, FEW, depth=1)
    made = export_torch(pool, tmp_path / "out", classes, form=form)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    gated = pool.recombine(classes)
    for batch in (1, 2, 7):
        x, t, _ = inputs(batch, dtype)
        y = labels_of(form, batch)
        assert error(program(x, t, y), gated(x, t, y)) <= limit[dtype]
    assert made.relative_error <= limit[dtype]
    assert made.details == {"form": form, "batch": None}


@pytest.mark.slow
def test_a_torch_program_of_one_batch_size_without_kindgene(make_pool, inputs, error, tmp_path):
    pool = make_pool(torch.float64, FEW, depth=1)
    made = export_torch(pool, tmp_path / "out", ["goldfish", "tench"], batch=3)
    x, t, y = inputs(3)
    save_file({"x": x, "t": t, "y": y}, tmp_path / "given")
    paths = [tmp_path / "out" / "model.pt2", tmp_path / "given", tmp_path / "found"]
    ended = subprocess.run([sys.executable, "-c", ALONE, *paths], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = pool.recombine(["goldfish", "tench"])(x, t, y)
    assert error(load_file(tmp_path / "found")["output"], expected) <= 1e-10
    program = torch.export.load(paths[0]).module()
    with pytest.raises(Exception, match="3"):
        program(*inputs(2)[:2], torch.zeros(2, dtype=torch.long))
    with pytest.raises(IndexError):
        program(x, t, torch.tensor([0, 1, 3]))
    with pytest.raises(IndexError):
        program(x, t, torch.tensor([0, 1, -1]))
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["classes"] == {"goldfish": 0, "tench": 1}
    assert record["null"] == 2
    assert record["relative_error"] == made.relative_error <= 1e-10


def test_a_torch_program_in_half_precision(make_pool, tmp_path):
    made = export_torch(make_pool(torch.float32, FEW, depth=1), tmp_path / "out", ["tench"], dtype="bfloat16", batch=1)
    assert made.dtype == "bfloat16"
    assert 1e-4 < made.relative_error <= 2e-2


def test_diffusers_own_backbone_as_a_program(own_backbone, inputs, error, tmp_path):
    export_torch(own_backbone, tmp_path / "out", ["3"], form="dense", batch=2)
    x, t, _ = inputs(2, channels=4)
    zero = torch.zeros(2, dtype=torch.long)
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(x, t, zero)
    assert error(found, own_backbone.recombine(["3"])(x, t, zero).sample) <= 1e-10


@pytest.mark.parametrize(("form", "classes", "dtype"), [FORMS[0], FORMS[2], FORMS[3]])
def test_an_onnx_program_of_any_batch(make_pool, inputs, error, limit, tmp_path, form, classes, dtype):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pool = make_pool(dtype, FEW, depth=1)
    made = export_onnx(pool, tmp_path / "out", classes, form=form)
    run = onnx_session(tmp_path / "out" / "model.onnx")
    gated = pool.recombine(classes)
    for batch in (1, 2, 7):
        x, t, _ = inputs(batch, dtype)
        y = labels_of(form, batch)
        assert error(run(x, t, y), gated(x, t, y)) <= limit[dtype]
    assert made.relative_error <= limit[dtype]
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["kindgene.classes"]) == classes
    with pytest.raises(Exception, match=r"(?i)out of|indices"):
        run(x, t, torch.full_like(y, 5))


def test_an_onnx_program_of_one_batch_size(make_pool, inputs, error, tmp_path):
    pytest.importorskip("onnxruntime")
    pool = make_pool(torch.float32, FEW, depth=1, learn_sigma=True)
    export_onnx(pool, tmp_path / "out", ["tench"], form="dense", batch=2)
    run = onnx_session(tmp_path / "out" / "model.onnx")
    x, t, _ = inputs(2, torch.float32)
    zero = torch.zeros(2, dtype=torch.long)
    assert error(run(x, t, zero), pool.recombine(["tench"])(x, t, zero)) <= 1e-5
    with pytest.raises(Exception, match=r"(?i)dimension"):
        run(x[:1], t[:1], zero[:1])


@pytest.mark.usefixtures("nothing_left")
def test_impossible_ones_are_refused(make_pool, tmp_path, monkeypatch):
    pool, out = make_pool(torch.float32, FEW, depth=1), tmp_path / "out"
    with pytest.raises(ValueError, match="holds one class; 2"):
        export_torch(pool, out, ["tench", "goldfish"], form="merged")
    with pytest.raises(ValueError, match="form must be"):
        export_torch(pool, out, ["tench"], form="factored")
    with pytest.raises(ValueError, match="batch must be a whole number"):
        export_torch(pool, out, ["tench"], batch=0)
    with pytest.raises(ValueError, match="ONNX is exported in float32 or float64"):
        export_onnx(pool, out, ["tench"], dtype="bfloat16")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'kindgene\[onnx\]'"):
        export_onnx(pool, out, ["tench"])
