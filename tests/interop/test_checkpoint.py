"""Weights on disk: tensors alone, files whole, no code run."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from kindgene.interop.checkpoint import open_folder, open_weights

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_safetensors_and_pickles_say_the_same(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors")
    torch.save(STATE, tmp_path / "x.pt")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": STATE, "ema": {"a": STATE["a"] + 1, "b": STATE["b"]}, "step": 3}, tmp_path / "run.ckpt")
    for name, place, more in (("x.safetensors", "", 0), ("x.pt", "", 0), ("old.pth", "", 0), ("run.ckpt", "ema", 1)):
        weights, found = open_weights(tmp_path / name)
        assert found == place
        assert weights.shapes() == {"a": (2, 3), "b": (2,)}
        assert torch.equal(weights.read("a"), STATE["a"] + more)


@pytest.mark.parametrize("value", [Bomb(), {"a": Bomb()}, {"ema": {"a": Bomb()}}])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds more than tensors"):
        open_weights(tmp_path / "x.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(ValueError, match=r"plain.pt"):
        open_weights(tmp_path / "plain.pt")


@pytest.mark.parametrize("value", [[torch.ones(1)], {}, {"a": 3}, torch.ones(2), {"ema": {"a": "text"}}])
def test_what_is_no_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="is not a state dict"):
        open_weights(tmp_path / "x.pt")


def test_damaged_missing_and_other_files_are_named(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    save_file(STATE, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        data = (tmp_path / name).read_bytes()
        for cut in (data[:-20], data[:10], b""):
            (tmp_path / name).write_bytes(cut)
            with pytest.raises(ValueError, match=name):
                open_weights(tmp_path / name)
        with pytest.raises(ValueError, match="no such file"):
            open_weights(tmp_path / f"no-{name}")
    with pytest.raises(ValueError, match=r"a checkpoint is a .safetensors or one of"):
        open_weights(tmp_path / "x.zip")


def test_a_folder_in_several_files(tmp_path):
    save_file({"a": STATE["a"]}, tmp_path / "1.safetensors")
    save_file({"b": STATE["b"]}, tmp_path / "2.safetensors")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    weights = open_folder(tmp_path)
    assert torch.equal(weights.read("b"), STATE["b"])
    assert weights.shapes() == {"a": (2, 3), "b": (2,)}
    index.write_text('{"weight_map": {"a": "../1.safetensors"}}')
    with pytest.raises(ValueError, match="outside its folder"):
        open_folder(tmp_path)
    index.unlink()
    with pytest.raises(ValueError, match="only safetensors are read"):
        open_folder(tmp_path)
