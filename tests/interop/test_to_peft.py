"""peft itself loads base and adapters; a batch of mixed adapters gives what the gate gives."""

import json
import shutil

import pytest
import torch

from kindgene.core.components import Components, compose
from kindgene.interop.adapters import check_adapter, load_base, load_peft
from kindgene.interop.to_peft import adapter_names, export_peft, lora_factors
from kindgene.models.dit import DiT

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def pools(make_pool):
    return {dtype: make_pool(dtype) for dtype in (torch.float64, torch.float32)}


@pytest.fixture(scope="module")
def exports(pools, tmp_path_factory):
    """dtype -> an export of all three classes."""
    root = tmp_path_factory.mktemp("peft")
    for dtype, pool in pools.items():
        export_peft(pool, root / str(dtype))
    return {dtype: root / str(dtype) for dtype in pools}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_peft_loads_adapters_and_switches_between_them(pools, exports, inputs, error, limit, dtype):
    folder = exports[dtype]
    names = json.loads((folder / "export.json").read_text())["adapters"]
    base = DiT.from_pretrained(folder / "base", torch_dtype=dtype)
    model = peft.PeftModel.from_pretrained(base, folder / "adapters" / "tench", adapter_name="tench")
    for adapter in set(names.values()) - {"tench"}:
        model.load_adapter(folder / "adapters" / adapter, adapter_name=adapter)
    model.eval()
    gated = pools[dtype].recombine(list(names))
    x, t, _ = inputs(4, dtype)
    for label, adapter in enumerate(names.values()):
        model.set_adapter(adapter)
        found = model(x, t, torch.zeros_like(t))
        assert error(found, gated(x, t, torch.full_like(t, label))) <= limit[dtype]
    with model.disable_adapter():
        assert error(model(x, t, torch.ones_like(t)), gated(x, t, torch.full_like(t, 3))) <= limit[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_mixed_batch_is_the_gate(pools, exports, inputs, error, limit, dtype):
    model = load_peft(exports[dtype])
    names = json.loads((exports[dtype] / "export.json").read_text())["adapters"]
    x, t, _ = inputs(6, dtype)
    y = torch.tensor([2, 3, 0, 1, 3, 2])  # 3: null
    adapters = ["__base__" if label == 3 else list(names.values())[label] for label in y.tolist()]
    found = model(x, t, (y == 3).long(), adapter_names=adapters)
    assert error(found, pools[dtype].recombine(list(names))(x, t, y)) <= limit[dtype]
    one = load_peft(exports[dtype], ["goldfish"])
    assert one.active_adapter == "goldfish"
    expected = pools[dtype].recombine(["goldfish"])(x, t, torch.zeros_like(y))
    assert error(one(x, t, torch.zeros_like(y)), expected) <= limit[dtype]


def test_what_is_written(pools, exports):
    folder = exports[torch.float32]
    record = json.loads((folder / "export.json").read_text())
    assert record["adapters"] == {"tench": "tench", "a.b/c": "a-b-c-fc7cd9c4", "goldfish": "goldfish"}
    assert 0 < record["relative_error"] <= 1e-5
    config = json.loads((folder / "adapters" / "tench" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["rank_pattern"].values()) == {6}  # q, k and v
    assert config["modules_to_save"] == ["y_embedder.embedding_table"]
    assert config["target_modules"] == sorted(pools[torch.float32].config.ranks)
    base = DiT.from_pretrained(folder / "base")
    assert sum(value.numel() for value in base.parameters()) == record["parameters"]
    table = base.y_embedder.embedding_table.weight
    assert table.shape[0] == 2
    assert not table[0].any()
    assert torch.equal(table[1], pools[torch.float32].learngene["y_embedder.embedding_table.null_row"])


def test_an_adapter_of_another_learngene_is_refused(make_pool, exports, tmp_path):
    other = make_pool(torch.float32, targets="paper")
    export_peft(other, tmp_path / "other", ["tench"])
    folder = shutil.copytree(exports[torch.float32], tmp_path / "mixed")
    check_adapter(folder / "adapters" / "tench", folder / "base")
    shutil.rmtree(folder / "adapters" / "tench")
    shutil.copytree(tmp_path / "other" / "adapters" / "tench", folder / "adapters" / "tench")
    with pytest.raises(ValueError, match=r"made for the learngene .* do not belong together"):
        check_adapter(folder / "adapters" / "tench", folder / "base")
    with pytest.raises(ValueError, match="do not belong together"):
        load_peft(folder)
    with pytest.raises(ValueError, match="do not belong together"):
        load_peft(folder, ["tench"])
    load_peft(folder, ["goldfish"])
    for bad, told in ((folder / "nowhere", "no such file"), (tmp_path / "other" / "base", "no such file")):
        with pytest.raises(ValueError, match=told):
            check_adapter(bad, folder / "base")


def test_an_adapter_of_someone_else_is_refused(exports, tmp_path):
    folder = shutil.copytree(exports[torch.float32], tmp_path / "copy")
    base = load_base(folder / "base")
    own = peft.get_peft_model(base, peft.LoraConfig(target_modules=["blocks.0.mlp.fc1"], r=2))
    own.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="does not say which learngene"):
        check_adapter(tmp_path / "own", folder / "base")


def test_unknown_classes_and_folders_are_refused(exports, tmp_path):
    with pytest.raises(ValueError, match="no adapter for 'trench'"):
        load_peft(exports[torch.float32], ["trench"])
    with pytest.raises(ValueError, match="no adapter for"):
        load_peft(exports[torch.float32], [])
    with pytest.raises(ValueError, match="no such file"):
        load_peft(tmp_path)
    (tmp_path / "export.json").write_text('{"to": "onnx"}')
    with pytest.raises(ValueError, match="not an export for peft"):
        load_peft(tmp_path)


def test_tailors_of_different_ranks(make_pool, inputs, error, tmp_path):
    pool = make_pool()
    fresh = pool.transfer(["new"], tailor_rank=5, generator=torch.Generator().manual_seed(3))
    pool.add(fresh)
    export_peft(pool, tmp_path / "out", ["new", "tench"])
    x, t, y = inputs(3)
    found = load_peft(tmp_path / "out")(x, t, (y == 2).long(), adapter_names=["new", "tench", "__base__"])
    assert error(found, pool.recombine(["new", "tench"])(x, t, y)) <= 1e-10


def test_diffusers_own_backbone(own_backbone, inputs, error, tmp_path):
    export_peft(own_backbone, tmp_path / "out", ["4", "1"])
    x, t, y = inputs(3, channels=4)
    found = load_peft(tmp_path / "out")(x, t, (y == 2).long(), adapter_names=["4", "1", "__base__"]).sample
    assert error(found, own_backbone.recombine(["4", "1"])(x, t, y).sample) <= 1e-10


def test_factors_of_a_fused_matrix():
    generator = torch.Generator().manual_seed(0)
    parts = [
        Components(*(torch.randn(*shape, generator=generator) for shape in ((rank, 4), (rank,), (rank, 5))))
        for rank in (2, 3, 1)
    ]
    down, up = lora_factors(parts)
    assert down.shape == (6, 5)
    torch.testing.assert_close(up @ down, torch.cat([compose(part) for part in parts]))


def test_names_that_peft_and_file_systems_take():
    names = adapter_names(["tench", "Tench", "a.b", "../../x", "é", "", "x" * 200, "ok_1-2"])
    assert names["ok_1-2"] == "ok_1-2"
    assert len({name.casefold() for name in names.values()}) == len(names)
    for name in names.values():
        assert name
        assert len(name) <= 50
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@pytest.mark.usefixtures("nothing_left")
def test_impossible_ones_are_refused(make_pool, make_dit, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="plain DiT has no tailors"):
        export_peft(make_dit(), tmp_path / "out")
    with pytest.raises(ValueError, match="no class 'trench'"):
        export_peft(make_pool(), tmp_path / "out", ["trench"])
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'kindgene\[peft\]'"):
        export_peft(make_pool(), tmp_path / "out")
