"""kindgene export and kindgene import from the outside: what is told, what is refused, nothing left of a refusal."""

import json
import re

import pytest
import torch

from kindgene import KindPipeline, Pool

ONE = ("--classes", "1")


@pytest.mark.parametrize("to", ["diffusers", "peft", "pipeline"])
def test_it_tells_size_and_measured_error(kindgene, shared_pool, tmp_path, to):
    if to == "peft":
        pytest.importorskip("peft")
    told = kindgene("export", shared_pool, "--to", to, *ONE, "--out", tmp_path / "out").out
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert f"{to}, {record['parameters']:,} parameters, classes 1" in told
    assert float(re.search(r"measured relative error (\S+)", told)[1]) <= 1e-5
    assert ("no VAE" in told) == (to == "diffusers")
    assert ("no guidance" in told) == (to == "diffusers")


def test_an_approximate_export_says_so(kindgene, refused, shared_pool, tmp_path):
    out = tmp_path / "out"
    told = refused("export", shared_pool, "--to", "dit", *ONE, "--out", out)
    assert re.search(r"off by [0-9.e-]+ .*--approximate", told)
    assert not out.exists()
    told = kindgene("export", shared_pool, "--to", "dit", *ONE, "--out", out, "--approximate").out
    assert "not exact: time_frequencies is 'diffusers' here" in told


def test_a_merged_model_and_all_classes(kindgene, shared_pool, tmp_path):
    kindgene("recombine", shared_pool, *ONE, "--form", "dense", "--out", tmp_path / "dense")
    kindgene("export", tmp_path / "dense", "--to", "diffusers", "--out", tmp_path / "out")
    kindgene("export", shared_pool, "--to", "pipeline", "--out", tmp_path / "all")
    assert KindPipeline.from_pretrained(tmp_path / "all").class_names == Pool.from_pretrained(shared_pool).classes


def test_there_and_back(kindgene, shared_pool, tmp_path):
    kindgene("export", shared_pool, "--to", "diffusers", *ONE, "--out", tmp_path / "out")
    (tmp_path / "names").write_text("one\n\n")
    told = kindgene("import", tmp_path / "out", "--class-names", tmp_path / "names", "--out", tmp_path / "pool").out
    assert told == f"{tmp_path / 'pool'}: DiT, 1 class, exact\n"
    x, t, zero = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 999]), torch.zeros(3, dtype=torch.long)
    found = Pool.from_pretrained(tmp_path / "pool").recombine(["one"])(x, t, zero)
    expected = Pool.from_pretrained(shared_pool).recombine(["1"])(x, t, zero)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    cut = ("--learngene-rank", "0.25", "--tailor-rank", 2, "--classes", "one", "--out", tmp_path / "cut")
    told = kindgene("import", tmp_path / "out", *cut).out
    assert re.search(r"largest relative error 0\.\d+ in blocks\.", told)
    kindgene("sample", tmp_path / "cut", "--per-class", 1, "--steps", 1, "--out", tmp_path / "x.png")


def test_bad_input_is_one_line(refused, shared_pool, tmp_path):
    before = set(tmp_path.iterdir())
    for arguments, told in (
        (("--to", "onxx", *ONE), "did you mean 'onnx'"),
        (("--to", "diffusers", "--classes", "0,1"), "holds one class; 2"),
        (("--to", "peft", "--classes", "nobody"), "no class 'nobody'"),
        (("--to", "peft", *ONE, "--form", "merged"), "takes no form"),
        (("--to", "torch-export", *ONE, "--form", "thin"), "form must be"),
        (("--to", "torch-export", *ONE, "--batch", "0"), "must be at least 1"),
        (("--to", "diffusers", *ONE, "--dtype", "int8"), "dtype must be one of"),
        (("--to", "diffusers", *ONE, "--vae", tmp_path), "no config.json"),
        (("--to", "pipeline", *ONE, "--dtype", "float64"), "takes no dtype"),
    ):
        assert told in refused("export", shared_pool, *arguments, "--out", tmp_path / "out"), arguments
    assert "neither a pool nor a DiT" in refused("export", tmp_path, "--to", "dit", "--out", tmp_path / "out")
    assert "not an empty folder" in refused("export", shared_pool, "--to", "peft", "--out", shared_pool)
    new = ("--out", tmp_path / "out")
    assert "no such file" in refused("import", tmp_path / "x.safetensors", *new)
    assert "no config.json" in refused("import", tmp_path, *new)
    assert "no config.json" not in refused("import", shared_pool, *new)
    assert "--learngene-rank is full" in refused("import", tmp_path, "--learngene-rank", "lots", *new)
    both = ("--classes", "a", "--class-names", tmp_path / "names")
    assert "not both" in refused("import", tmp_path, *both, *new)
    assert "names" in refused("import", tmp_path, "--class-names", tmp_path / "names", *new)
    assert "not an empty folder" in refused("import", tmp_path, "--out", shared_pool)
    assert set(tmp_path.iterdir()) == before
