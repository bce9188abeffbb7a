"""docs/baselines.md tells of every strategy, and its example runs."""

import re
from pathlib import Path

from kindgene.transfer.strategies import STRATEGIES

TEXT = (Path(__file__).parents[2] / "docs" / "baselines.md").read_text()


def test_every_strategy_has_a_row():
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE) == list(STRATEGIES)


def test_what_the_rows_say(make):
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        name = cells[0].strip("`") if cells else ""
        if name in STRATEGIES:
            ranked = STRATEGIES[name].ranked
            usual = "-" if ranked is None else "the pool's" if ranked.usual is None else str(ranked.usual)
            assert (cells[3], cells[4].removeprefix("b = ")) == (f"{make(name).label_drop:g}", usual)
            assert cells[5].startswith("yes") == STRATEGIES[name].same_start or name.startswith("kind"), name


def test_the_example_runs(start, digits, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(block, {"dense": start.dense, "pool": start.pool, "names": ("6", "7", "8"), "data": digits})
    assert "lora_A.default.weight" in capsys.readouterr().out
