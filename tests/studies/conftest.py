"""One tiny demo, run once: what it returned, what it left, and the result its report was made of."""

from types import SimpleNamespace

import pytest

from kindgene.progress import NoProgress
from kindgene.studies import demo as study


class Stage(NoProgress):
    """Remembers where a stage began and how far it came, and does something at one of its steps."""

    def __init__(self, name, at, action):
        self.name, self.at, self.action = name, at, action
        self.total = self.began = self.reached = None
        self.closed = False

    def start(self, total, done=0):
        self.total, self.began, self.reached = total, done, done

    def update(self, done, *figures):
        self.reached = done
        if done == self.at:
            self.action()

    def close(self):
        self.closed = True


@pytest.fixture(scope="session")
def stages():
    """Makes a list and the `progress=` that fills it; `interrupt` is (part of a stage's name, step, what to do)."""

    def make(interrupt=("", 0, None)):
        part, at, action = interrupt
        seen = []

        def show(name):
            seen.append(Stage(name, at if part and part in name else None, action))
            return seen[-1]

        return seen, show

    return make


@pytest.fixture(scope="session")
def demo(tmp_path_factory, stages):
    """A finished demo with seed 0. Not to be changed."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    seen, show = stages()
    results = []
    write_report = study.write_report

    def keep(path, result):
        results.append(result)
        write_report(path, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "write_report", keep)
        report = study.run_demo(out, seed=0, scale="tiny", progress=show)
    return SimpleNamespace(out=out, report=report, result=results[0], stages=seen)
