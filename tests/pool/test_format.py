"""docs/pools.md describes the files as they are: its reader, which needs no kindgene, finds the recombined weights."""

import json
import re
from pathlib import Path

import pytest

from kindgene.pool.pool import Pool

PAGE = (Path(__file__).parents[2] / "docs" / "pools.md").read_text(encoding="utf-8")


def test_every_key_of_a_config_is_described(saved):
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {key for keys, _ in rows for key in re.findall(r"`(\w+)`", keys)} == config.keys()
    (entry,) = (text for keys, text in rows if keys == "`classes`")
    assert set(re.findall(r"`(\w+)`", entry)) - {"ranks"} == config["classes"]["cat"].keys()


@pytest.mark.parametrize("tailor_rank", [4, {"blocks.0.attn.qkv": [4, 2, 3], "*": 2}], ids=["one", "many"])
def test_a_pool_is_read_without_kindgene(dit, tmp_path, monkeypatch, tailor_rank):
    pool = dit.model(tailor_rank=tailor_rank).decompose(["tench", *"abcd"])
    pool.save_pretrained(tmp_path / "my-pool")
    monkeypatch.chdir(tmp_path)
    (code,) = (b for b in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if "json" in b)
    assert "kindgene" not in code
    found = {}
    exec(code, found)
    assert isinstance(found["config"]["classes"]["tench"]["tailor_ranks"], type(tailor_rank))
    plain = pool.recombine(["tench"], form="dense").get_submodule(found["target"]).weight
    values = plain.chunk(3)[2]
    assert (found["of_tench"] - values).norm() <= 1e-10 * values.norm()
    assert (found["of_all"] - values).norm() > 0.1 * values.norm()


def test_every_file_is_named(pool_folder):
    pool = Pool.from_pretrained(pool_folder)
    pool.add(pool.transfer(["new"]))
    names = {path.name for path in pool_folder.iterdir()}
    assert names == {"config.json", "learngene.safetensors", "tailors", "README.md", ".lock"}
    assert all(name in PAGE for name in names)
