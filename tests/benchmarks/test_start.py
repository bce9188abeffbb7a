"""What starting takes is measured in processes of their own."""

from kindgene.benchmarks.start import COMMANDS, measure_start


def test_processes_are_timed():
    found = measure_start(1)
    assert found.keys() == COMMANDS.keys()
    for times in found.values():
        assert times["cpu"] > 0
        assert times["wall"] > 0
    assert found["kindgene --help"]["cpu"] > found["python alone"]["cpu"]
