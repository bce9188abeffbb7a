"""Files are written whole or not at all; what cannot be read says why in one line."""

import os
from pathlib import Path

import pytest
import torch

from kindgene import files


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"Größe": "é"}}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    assert list(files.read_json(tmp_path / "x.json")) == ["b", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, torch.zeros(1)])
def test_json_refuses_what_it_cannot_hold(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"x\.json.*cannot be written as JSON"):
        files.write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_safetensors_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    tensors = {"whole": whole, "row": whole[1], "turned": whole.mT, "empty": whole[:0], "number": whole[0, 0]}
    files.write_safetensors(tmp_path / "x.safetensors", tensors, {"who": "me"})
    read = files.read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == dtype
        assert torch.equal(read[name], tensor)
    assert files.read_metadata(tmp_path / "x.safetensors") == {"who": "me"}
    assert files.read_shapes(tmp_path / "x.safetensors") == {name: tuple(read[name].shape) for name in tensors}
    # A row is stored as itself, not with the table it is cut from.
    files.write_safetensors(tmp_path / "row.safetensors", {"row": torch.zeros(1000, 100)[3]})
    assert (tmp_path / "row.safetensors").stat().st_size < 1000


def test_no_metadata(tmp_path: Path) -> None:
    files.write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    assert files.read_metadata(tmp_path / "x.safetensors") == {}


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "empty", "folder"])
@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_damage_is_named_in_one_line(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / f"x.{kind}"
    files.write_json(path, {"a": [1, 2, 3]}) if kind == "json" else files.write_safetensors(
        path, {"a": torch.ones(100)}
    )
    if damage == "missing":
        path.unlink()
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        whole = path.read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 2], "foreign": b"\x80\x81" * 99, "empty": b""}[damage])
    reads = [files.read_json] if kind == "json" else [files.read_safetensors, files.read_metadata, files.read_shapes]
    for read in reads:
        with pytest.raises(ValueError, match=f"x.{kind}: ") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_sha256(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "x", b"abc")
    assert files.sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")
    with pytest.raises(ValueError, match="there is no such file"):
        files.sha256(tmp_path / "y")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "x"
    files.write_bytes(path, b"old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if failing == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("replace"), replace(self, to))[1])
    files.write_bytes(tmp_path / "x", b"new")
    assert order == ["fsync", "replace", "fsync"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    files.write_bytes(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_many_files_at_once(tmp_path: Path) -> None:
    """In pieces, in threads; the permissions are right whichever thread asks for the umask when."""
    mode = os.umask(0o027)
    try:
        paths = [tmp_path / f"{number}" for number in range(40)]
        files.in_threads(lambda path: files.write_pieces(path, [b"a", memoryview(b"bc"), b""]), paths)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mode)
    assert {path.read_bytes() for path in paths} == {b"abc"}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    if os.name != "nt":
        assert {path.stat().st_mode & 0o777 for path in paths} == {0o640}


def test_the_first_error_of_threads_is_raised_when_all_have_ended() -> None:
    running, ended = [], []

    def act(number: int) -> int:
        running.append(number)
        if number in (1, 3):
            raise OSError(number, "no")
        ended.append(number)
        return -number

    assert files.in_threads(act, [4, 2, 0]) == [-4, -2, 0]
    assert files.in_threads(act, []) == []
    for given in ([1], [0, 1, 2, 3, *range(4, 500)]):
        running.clear(), ended.clear()
        with pytest.raises(OSError, match="no") as error:
            files.in_threads(act, given)
        assert error.value.errno == 1
        assert set(running) - set(ended) <= {1, 3}
