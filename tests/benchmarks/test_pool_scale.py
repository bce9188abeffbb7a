"""benchmarks/pool_scale.py at tiny scale: it measures what it says, and leaves nothing. Its figures are not tested."""

import importlib.util
import json
from pathlib import Path

import pytest

from kindgene import Pool

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pool_scale.py"
TINY = ["--classes", "20", "--preset", "tiny/2", "--rank", "4", "--repeats", "2"]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("pool_scale", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_large_pool_is_a_sound_one_with_a_file_a_class(script, tmp_path, capsys):
    few, many = script.build(tmp_path, 20, "tiny/2", 4, seed=0)
    pool = Pool.from_pretrained(many)
    pool.verify()
    files = list((many / "tailors").rglob("*.safetensors"))
    assert len(pool.classes) == len(pool.loaded) == len(files) == 20
    assert pool.config.learngene_id == Pool.from_pretrained(few).config.learngene_id
    assert len({path.read_bytes() for path in files}) == 20
    assert capsys.readouterr().err == "20 classes written\n"


def test_prints_a_table_and_writes_json(script, tmp_path, capsys):
    script.main(["--out", str(tmp_path / "work"), "--json", str(tmp_path / "scale.json"), *TINY])
    result = json.loads((tmp_path / "scale.json").read_text())
    assert result["classes"] == 20
    assert result["tailors_bytes"] == pytest.approx(20 * result["tailor_bytes"])
    assert result["environment"]["cores"] >= 1
    found = result["seconds"]
    assert all(value > 0 for value in found.values())
    assert found["open_ratio"] == found["open_3_of_many"] / found["open_3_of_3"]
    assert {"list_classes", "inspect_sizes", "inspect", "add_one", "remove_one", "verify_all"} <= set(found)
    printed = capsys.readouterr().out
    assert "| open the pool, load 3 classes |" in printed
    assert "MB learngene" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["scale.json"]


def test_refuses_a_folder_that_is_there(script, tmp_path, capsys):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        script.main(["--out", str(tmp_path), *TINY])
    assert "name a new folder" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "kept"


def test_refuses_a_disk_that_is_too_full_and_cleans_up(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "CHUNK", 10**15)
    with pytest.raises(ValueError, match="GB free"):
        script.run(tmp_path / "work", classes=20, preset="tiny/2", rank=4)
    assert not (tmp_path / "work").exists()
