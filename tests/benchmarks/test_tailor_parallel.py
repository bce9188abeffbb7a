"""benchmarks/tailor_parallel.py at tiny scale: it measures what it says. Its figures are not tested."""

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tailor_parallel.py"
TINY = ["--classes", "12", "--width", "32", "--depth", "1", "--batch-size", "4", "--steps", "3"]


def test_prints_a_table_and_writes_json(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("tailor_parallel", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([*TINY, "--json", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    data, tailor = result["rows"]
    assert (data["way"], tailor["way"]) == ("data", "tailor")
    few = 64  # the loss, a norm, the question whether to stop
    for row in (data, tailor):
        assert row["learngene_bytes"] <= row["summed_bytes_a_step"]
        assert row["seconds_a_step"] > 0
    assert tailor["summed_bytes_a_step"] <= tailor["learngene_bytes"] + few
    assert data["summed_bytes_a_step"] >= data["learngene_bytes"] + 4 * data["tailor_bytes"]
    assert capsys.readouterr().out.count("|") > 20
