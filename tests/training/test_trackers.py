"""Trackers hear what the log says, a resumed run goes on in the same place, and unused ones cost nothing."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import PartialState, tracking

from kindgene.files import read_json
from kindgene.training.trackers import Trackers, check_trackers

CONFIG = {"steps": 10, "betas": [0.9, 0.999], "gradient_clip": None, "data": {"images": 30, "name": "digits"}}
LINE = {
    "step": 2,
    "loss": 0.5,
    "note": "text",
    "diagnostics": {"summary": {"tailor_energy": 0.25, "singular_largest": None}, "layers": {"a": {"rank": 4}}},
}
GREY = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)


@pytest.fixture(autouse=True)
def state() -> Iterator[None]:
    """What an Accelerator would have set up; taken down again, unless it was there before."""
    mine = not PartialState._shared_state
    PartialState(cpu=True)
    yield
    if mine:
        PartialState._reset_state()


def told(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_hears_everything(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Trackers(("tensorboard",), tmp_path, CONFIG) as trackers:
        trackers.log(LINE, 2)
        trackers.log({**LINE, "loss": 0.25}, 4)
        trackers.log_images({"samples": GREY, "colour": GREY.repeat(3, axis=3)}, 4)
    events = told(tmp_path)
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(2, 0.5), (4, 0.25)]
    assert events.Scalars("diagnostics/summary/tailor_energy")[0].value == 0.25
    assert set(events.Tags()["scalars"]) == {"loss", "diagnostics/summary/tailor_energy"}
    assert sorted(events.Tags()["images"]) == ["colour", "samples"]
    assert [one.step for one in events.Images("samples")] == [4]
    settings = next((tmp_path / "tensorboard").rglob("hparams.yml")).read_text()
    for line in ("steps: 10", "betas: '[0.9, 0.999]'", "gradient_clip: None", "data/name: digits"):
        assert line in settings


def test_tensorboard_goes_on_where_the_run_does(tmp_path: Path) -> None:
    """What was told of steps after the checkpoint is hidden: they are run again."""
    pytest.importorskip("tensorboard")
    with Trackers(("tensorboard",), tmp_path, CONFIG) as trackers:
        for step in (1, 2, 3, 4):
            trackers.log({"loss": float(step)}, step)
    with Trackers(("tensorboard",), tmp_path, CONFIG, resume_step=2) as trackers:
        for step in (3, 4, 5):
            trackers.log({"loss": 10.0 * step}, step)
    values = [(one.step, one.value) for one in told(tmp_path).Scalars("loss")]
    assert values == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert len(list((tmp_path / "tensorboard").rglob("hparams.yml"))) == 1


def test_wandb_keeps_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for resume_step in (None, 2):
        with Trackers(("wandb",), tmp_path, CONFIG, resume_step=resume_step) as trackers:
            ids.append(wandb.run.id)
            assert wandb.run.project == "kindgene"
            if resume_step is None:
                assert wandb.run.config["data/name"] == "digits"
            trackers.log(LINE, 3)
            trackers.log_images({"samples": GREY}, 3)
        assert wandb.run is None
    known = read_json(tmp_path / "trackers.json")
    assert ids == [known["wandb"]["id"]] * 2
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) >= 1


def test_trackio_keeps_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    names = []
    for resume_step in (None, 2):
        with Trackers(("trackio",), tmp_path, CONFIG, resume_step=resume_step) as trackers:
            names.append(trackers._open["trackio"].run.name)
            trackers.log(LINE, 3)
            trackers.log_images({"samples": GREY}, 3)
    assert names == [read_json(tmp_path / "trackers.json")["trackio"]["name"]] * 2


class Recorder:
    """Stands for a tracker of Accelerate, so that the protocol is tested without the package."""

    made: list["Recorder"]

    def __init__(self, run_name: str, **arguments: Any) -> None:
        self.arguments = {"run_name": run_name, **arguments}
        self.calls: list[Any] = []
        type(self).made.append(self)

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(values)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append((values, step))

    def log_images(self, values: dict[str, Any], step: int, **_: Any) -> None:
        self.calls.append((list(values), step))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """In the place of wandb's tracker, wandb being installed or not."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: sys if name == "wandb" else find(name))
    monkeypatch.setattr(tracking, "WandBTracker", Recorder)
    Recorder.made = []
    return Recorder


def test_a_new_run_in_a_new_id_and_a_resumed_one_in_its_own(tmp_path: Path, recorder: type[Recorder]) -> None:
    (tmp_path / "run-7").mkdir()
    for resume_step in (None, 2, 5):
        with Trackers(("wandb",), tmp_path / "run-7", CONFIG, resume_step=resume_step) as trackers:
            trackers.log({"loss": 1.0}, 3)
    first, second, third = recorder.made
    assert first.arguments == second.arguments == third.arguments
    assert (first.arguments["run_name"], first.arguments["name"]) == ("kindgene", "run-7")
    assert next(call for call in first.calls if isinstance(call, dict))["data/images"] == 30
    assert second.calls == ["start", ({"loss": 1.0}, 3), "finish"]


def test_it_is_finished_whatever_happens(tmp_path: Path, recorder: type[Recorder]) -> None:
    with pytest.raises(KeyboardInterrupt), Trackers(("wandb",), tmp_path, CONFIG):
        raise KeyboardInterrupt
    assert recorder.made[0].calls[-1] == "finish"
    assert recorder.made[0].calls.count("finish") == 1


def test_only_the_main_process_reports(tmp_path: Path, recorder: type[Recorder]) -> None:
    with Trackers(("wandb",), tmp_path, CONFIG, main=False) as trackers:
        trackers.log(LINE, 1)
        trackers.log_images({"samples": GREY}, 1)
    assert recorder.made == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown tracker 'paper'; there are tensorboard, wandb, trackio"):
        check_trackers(("paper",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"reporting to wandb needs it installed: pip install 'kindgene\[wandb\]'$"):
        Trackers(("wandb",), tmp_path, CONFIG, main=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: sys)
    monkeypatch.delattr(tracking, "TrackioTracker")
    with pytest.raises(ValueError, match=r"^accelerate 1\..* does not know trackio: pip install -U accelerate$"):
        check_trackers(("trackio",))


def test_unused_trackers_are_not_imported(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom kindgene.training.trackers import Trackers\n"
        "with Trackers((), Path(sys.argv[1]), {}) as trackers: trackers.log({'loss': 1.0}, 1)\n"
        "print([name for name in ('tensorboard', 'wandb', 'trackio', 'accelerate') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []
