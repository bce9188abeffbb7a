"""Tensors as bytes: those that the safetensors library writes, and what is no such file is refused."""

import json

import pytest
import safetensors.torch
import torch

from kindgene.pool.tensor_bytes import _DTYPES, from_bytes, memory, to_bytes


def tensor_of(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)


def file_of(header, content=b""):
    """A file with a header of our own making."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return tensor_of(len(text).to_bytes(8, "little") + text + content)


def everything():
    """A tensor of every dtype and of many shapes, in no order, with names that JSON escapes."""
    shapes = ((), (0, 3), (1,), (3, 2))
    return {
        f'{number * 7 % 5}\u00e9\x7f\x01"{dtype}{len(shape)}': torch.randint(0, 2, shape).to(dtype)
        for number, dtype in enumerate(_DTYPES.values())
        for shape in shapes
    }


@pytest.mark.parametrize("metadata", [None, {"a": "\u00f6\n"}], ids=["none", "one"])
def test_they_are_those_of_the_library(metadata):
    state = everything()
    for tensors in (state, {}):
        data = b"".join(to_bytes(tensors, metadata))
        assert data == safetensors.torch.save(tensors, metadata)
        found, told = from_bytes(tensor_of(data))
        assert told == (metadata or {})
        assert found.keys() == tensors.keys()
        for key, value in tensors.items():
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
            assert bytes(memory(found[key])) == bytes(memory(value))


def test_several_metadata_are_sorted():
    told = {name: name for name in "dbca"}
    assert list(from_bytes(tensor_of(b"".join(to_bytes({}, told))))[1]) == sorted(told)


def test_any_layout_is_written_as_the_numbers_it_holds():
    whole = torch.arange(24.0).reshape(4, 6)
    turned = {"row": whole[1], "turned": whole.mT, "conjugate": torch.tensor([1 + 2j]).conj()}
    found, _ = from_bytes(tensor_of(b"".join(to_bytes(turned))))
    assert all(torch.equal(found[key], turned[key]) for key in turned)
    assert to_bytes({"whole": whole})[1].nbytes == 96
    assert torch.frombuffer(to_bytes({"whole": whole})[1], dtype=torch.float32).data_ptr() == whole.data_ptr()


def test_a_dtype_that_the_format_lacks_is_named():
    with pytest.raises(ValueError, match=r"z: a safetensors file cannot hold torch.complex128"):
        to_bytes({"z": torch.zeros(1, dtype=torch.complex128)})


def test_a_header_that_is_padded_otherwise_is_read():
    place = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for spaces in range(4):
        text = json.dumps({"x": place}).encode() + b" " * spaces
        assert from_bytes(file_of(text, b"\0\0\x80?"))[0]["x"].tolist() == [1.0]


PLACE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor_of(b""), "header is cut off"),
        (tensor_of(b"\xff" * 64), "header is cut off"),
        (file_of(b"[]"), "header is not an object"),
        (file_of(b"{"), "Expecting"),
        (file_of(b"\xff\xff"), "decode"),
        (file_of({"x": 3}), "x has no place"),
        (file_of({"x": {**PLACE, "data_offsets": [0]}}, bytes(8)), "x has no place"),
        (file_of({"x": {**PLACE, "data_offsets": [0, "8"]}}, bytes(8)), "x has no place"),
        (file_of({"x": {**PLACE, "dtype": "F99"}}, bytes(8)), "x has no dtype or shape"),
        (file_of({"x": {**PLACE, "shape": [-2]}}, bytes(8)), "x has no dtype or shape"),
        (file_of({"x": {**PLACE, "shape": [3]}}, bytes(8)), "x does not lie where its shape says"),
        (file_of({"x": PLACE}, bytes(7)), "x does not lie where its shape says"),
        (file_of({"x": {**PLACE, "data_offsets": [4, 12]}}, bytes(12)), "x does not lie where its shape says"),
        (file_of({"x": PLACE, "y": PLACE}, bytes(8)), "y does not lie where its shape says"),
        (file_of({"x": PLACE}, bytes(9)), "longer than its tensors"),
    ],
)
def test_what_is_no_whole_file_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        from_bytes(data)
