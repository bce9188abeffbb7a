"""The folder of an export is there as a whole or not at all."""

import pytest

from kindgene.interop.folder import whole_folder


def test_it_appears_at_the_end(tmp_path):
    with whole_folder(tmp_path / "deep" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "x").read_text() == "1"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "out" / "x").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_nothing_not_even_parents(tmp_path, error):
    def fail():
        with whole_folder(tmp_path / "deep" / "er" / "out") as folder:
            (folder / "x").write_text("1")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_is_not_touched(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "x").write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not an empty folder"), whole_folder(out):
        pytest.fail("no work is begun")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.is_symlink() or (out if kind == "file" else out / "x").read_text() == "mine"
