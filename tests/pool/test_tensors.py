"""Tensors as bytes: the same tensors give the same bytes, and other bytes or other tensors are refused."""

import hashlib

import pytest
import safetensors.torch
import torch

from kindgene.pool.tensors import check_finite, check_tensors, encode, parse, read_bytes, state_id


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {"b.u": torch.randn(3, 4, generator=generator), "a.s": torch.arange(3.0), "n": torch.tensor(5)}


def read(path, digest):
    """Tensors and metadata of a file."""
    return parse(path, read_bytes(path, digest))


@pytest.fixture
def written(state, tmp_path):
    """A file and its hash."""
    data = b"".join(encode(state, {"who": "me", "what": "é"}))
    (tmp_path / "x.safetensors").write_bytes(data)
    return tmp_path / "x.safetensors", hashlib.sha256(data).hexdigest()


def test_what_is_written_comes_back(state, written):
    tensors, metadata = read(*written)
    assert metadata == {"who": "me", "what": "é"}
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], state[key]) and tensors[key].dtype == state[key].dtype for key in state)


def test_bytes_do_not_depend_on_order_or_layout(state):
    turned = {key: state[key] for key in reversed(state)}
    turned["b.u"] = state["b.u"].mT.contiguous().mT
    assert not turned["b.u"].is_contiguous()
    first = encode(state, {"a": "1", "b": "2", "c": "3"})
    assert encode(turned, {"c": "3", "b": "2", "a": "1"}) == first
    assert encode({**state, "n": torch.tensor(6)}, {"a": "1", "b": "2", "c": "3"}) != first
    assert encode(state, {"a": "1", "b": "2", "c": "4"}) != first


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"x\.safetensors is missing: the pool is incomplete; copy it again"):
        read(tmp_path / "x.safetensors", "0" * 64)


def test_what_is_no_file_is_named(written):
    path, digest = written
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be read: Is a directory"):
        read(path, digest)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_other_bytes_are_refused(written, damage):
    path, digest = written
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
    path.write_bytes({"cut": data[:-5], "flipped": data, "empty": b"", "longer": data + b"\0"}[damage])
    with pytest.raises(ValueError, match=rf"x\.safetensors is not the file .* expected {digest[:16]}.*copy it again"):
        read(path, digest)


@pytest.mark.parametrize("data", [b"", b"not tensors", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused_even_with_its_hash(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match="x is not a safetensors file that kindgene wrote"):
        read(tmp_path / "x", hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {"kindgene": "[]"}])
def test_a_file_of_another_program_has_no_metadata(tmp_path, metadata):
    data = safetensors.torch.save({"a": torch.ones(2)}, metadata)
    (tmp_path / "x").write_bytes(data)
    assert read(tmp_path / "x", hashlib.sha256(data).hexdigest())[1] == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("a.s"), "here: a.s is missing"),
        (lambda state: state.update({"a.s": torch.zeros(4)}), r"here: a.s has shape \[4\], expected \[3\]"),
        (lambda state: state.update({"z": torch.zeros(1), "y": torch.zeros(1)}), "here: unexpected y, z"),
    ],
)
def test_other_tensors_are_named(state, change, message):
    expected = {key: tuple(value.shape) for key, value in state.items()}
    check_tensors("here", state, expected)
    change(state)
    with pytest.raises(ValueError, match=message):
        check_tensors("here", state, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(state, value):
    check_finite("here", state)
    state["b.u"][1, 2] = value
    with pytest.raises(ValueError, match=r"here: b\.u has values that are not finite"):
        check_finite("here", state)


def test_a_learngene_is_known_by_its_keys_dtypes_shapes_and_values(state):
    known = state_id(state)
    assert state_id({key: state[key].clone() for key in reversed(state)}) == known
    assert state_id({**state, "b.u": state["b.u"].mT.contiguous().mT}) == known
    others = [
        {**state, "b.u": state["b.u"].nextafter(torch.tensor(9.0))},
        {**state, "b.u": state["b.u"].view(4, 3)},
        {**state, "b.u": state["b.u"].view(torch.int32)},
        {**state, "n": torch.tensor([5])},
        {key.replace("a.", "c."): value for key, value in state.items()},
        {key: value for key, value in state.items() if key != "n"},
    ]
    assert len({known, *map(state_id, others)}) == len(others) + 1
