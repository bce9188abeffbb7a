"""Cells are computed once, in any order, by several commands; results of other settings are not mixed."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import filelock
import pytest

from kindgene.studies import cells as module
from kindgene.studies.cells import Cells, run_cells


@dataclass(frozen=True)
class Sizes:
    numbers: tuple[int, ...] = (1, 2)


class Squares(Cells):
    study = "squares"

    def __init__(self, folder, sizes=Sizes(), seed=0):
        super().__init__(folder, {"tiny": sizes}, scale="tiny", seed=seed)
        self.sizes, self.computed = sizes, []

    def names(self):
        return (*(f"square/{number}" for number in self.sizes.numbers), "sum")

    def compute(self, name):
        self.computed.append(name)
        if name == "sum":
            return {"value": sum(self.get(f"square/{number}")["value"] for number in self.sizes.numbers)}
        return {"value": int(name.partition("/")[2]) ** 2}

    def result(self):
        return self.get("sum")


def test_each_is_computed_once(tmp_path):
    cells = Squares(tmp_path)
    assert run_cells([cells]) == (3, 3)
    assert cells.computed == ["square/1", "square/2", "sum"]
    again = Squares(tmp_path)
    assert run_cells([again]) == (3, 3)
    assert again.result() == {"value": 5}
    assert again.computed == []


def test_they_run_in_any_order_and_compute_what_they_need(tmp_path):
    assert run_cells([Squares(tmp_path)], "square/2") == (1, 3)
    cells = Squares(tmp_path)
    assert run_cells([cells], "sum") == (3, 3)
    assert cells.computed == ["sum", "square/1"]


def test_two_at_once_compute_a_cell_once(tmp_path):
    class Slow(Squares):
        def compute(self, name):
            time.sleep(0.2)
            return super().compute(name)

    both = [Slow(tmp_path), Slow(tmp_path)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda cells: cells.get("square/2"), both))
    assert found == [{"value": 4}, {"value": 4}]
    assert sorted(map(len, (cells.computed for cells in both))) == [0, 1]


def test_a_pattern_that_meets_no_cell(tmp_path):
    with pytest.raises(ValueError, match="no cell matches 'cube/\\*'; cells are named like square/1, square/2, sum"):
        run_cells([Squares(tmp_path)], "cube/*")


def test_none_is_begun_after_the_time(tmp_path, monkeypatch):
    clock = count(0, 40)  # seconds a look
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert run_cells([Squares(tmp_path)], minutes=1) == (1, 3)


def test_cells_that_others_compute_come_last(tmp_path):
    cells, heard = Squares(tmp_path), []
    lock = cells.file("square/1").with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    held = filelock.FileLock(lock).acquire()

    def tell(told):
        heard.append(told)
        if len(heard) == 1:
            assert not cells.finish("square/1", wait=False)
            held.lock.release()  # the other process ends without having computed it

    cells.sizes = Sizes((1, 2, 3))
    assert run_cells([cells], "square/*", tell=tell) == (3, 4)
    assert cells.computed == ["square/2", "square/3", "square/1"]
    assert heard == ["2 cells left", "1 cell left", "no cell left"]


def test_the_time_left_is_told_at_the_pace_so_far(tmp_path, monkeypatch):
    clock, heard = count(0, 90), []
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert run_cells([Squares(tmp_path, Sizes((1, 2, 3, 4)))], tell=heard.append) == (5, 5)
    assert heard == [
        *("4 cells left", "3 cells left", "2 cells left, about 0:06:00", "1 cell left, about 0:03:00", "no cell left")
    ]


def test_seeds_have_folders_of_their_own(tmp_path):
    seeds = [Squares(tmp_path), Squares(tmp_path, seed=1)]
    assert run_cells(seeds, "square/1") == (2, 6)
    assert seeds[0].file("square/1") == tmp_path / "squares" / "tiny-seed0" / "cells" / "square" / "1.json"
    assert seeds[1].has("square/1")
    assert not seeds[1].has("sum")


def test_another_seed_and_a_scale_that_is_not_there(tmp_path):
    class Plain(Squares):
        def __init__(self, folder, **place):
            Cells.__init__(self, folder, {"tiny": Sizes()}, **place)

    first = Plain(tmp_path, scale="tiny", show=None)
    assert first.of_seed(0) is first
    second = first.of_seed(2)
    assert (second.seed, second.scale, second.root) == (2, "tiny", tmp_path)
    with pytest.raises(ValueError, match="the squares study has no scale 'mini'; there is tiny"):
        Plain(tmp_path)


def test_results_of_other_settings_are_not_mixed(tmp_path):
    Squares(tmp_path).get("square/1")
    with pytest.raises(ValueError, match=r"1\.json was computed with other settings; choose another folder"):
        Squares(tmp_path, Sizes((1, 3))).get("square/1")
