"""Where a run reports besides its own log: tensorboard, wandb, trackio, through Accelerate's trackers.

All three are extras, imported only where asked for. A resumed run goes on in what it began: the same folder for
tensorboard, where what was told of later steps is hidden, the same id for wandb, the same name for trackio; which
these are is kept in ``trackers.json`` beside the run. What is told again of steps between the checkpoint and the end of
the run before, wandb passes over and trackio has twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kindgene import files

_CLASSES = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "trackio": "TrackioTracker"}
_UNTOLD = "layers"  # of `diagnose`: hundreds of numbers a line, which the run's own log holds


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError, in a line, for a tracker that is unknown, not installed, or not known to this Accelerate."""
    for name in names:
        if name not in _CLASSES:
            raise ValueError(f"unknown tracker {name!r}; there are {', '.join(_CLASSES)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"reporting to {name} needs it installed: pip install 'kindgene[{name}]'")
        _tracker_class(name)


class Trackers:
    """The trackers of one run, open as long as the ``with`` block.

    `folder` is the run's, `config` plain data that is told once, `resume_step` the step that a resumed run goes on
    from (None: a new one), `main` whether this process is the one that reports: the others do nothing. Accelerate's
    trackers need its state: an `Accelerator` is there already. Raises ValueError as `check_trackers` does, on every
    process.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        config: Mapping[str, Any],
        *,
        resume_step: int | None = None,
        main: bool = True,
        project: str = "kindgene",
    ) -> None:
        check_trackers(names)
        self.names = tuple(dict.fromkeys(names)) if main else ()
        self.folder, self.config, self.resume_step, self.project = folder, config, resume_step, project
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # one that fails to start ends those that have
            for name in self.names:
                tracker = _tracker_class(name)(**self._arguments(name))
                tracker.start()
                stack.callback(tracker.finish)
                if self.resume_step is None:
                    tracker.store_init_configuration(_settings(self.config))
                self._open[name] = tracker
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Tells numbers, nested as they may be (``diagnostics/summary/...``); what is no number is left out.

        So are the diagnostics of single layers: the run's own log has them.
        """
        numbers = {
            name: value
            for name, value in _flat(values).items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        if numbers:
            for tracker in self._open.values():
                tracker.log(numbers, step=step)

    def log_images(self, images: Mapping[str, npt.NDArray[np.uint8]], step: int) -> None:
        """Shows images [B, H, W, 1 or 3] by name; trackio gets them one by one."""
        for name, tracker in self._open.items():
            if name == "tensorboard":
                tracker.log_images(dict(images), step=step, dataformats="NHWC")
            elif name == "wandb":
                tracker.log_images({key: [_drawn(one) for one in some] for key, some in images.items()}, step=step)
            else:
                _log_trackio_images(tracker, images, step)

    def finish(self) -> None:
        """Ends all of them; a second time it does nothing."""
        self._open = {}
        self._stack.close()

    def _arguments(self, name: str) -> dict[str, Any]:
        """What a tracker is made with. Accelerate's "run name" is wandb's and trackio's project."""
        if name == "tensorboard":
            purge = {} if self.resume_step is None else {"purge_step": self.resume_step + 1}
            return {"run_name": name, "logging_dir": str(self.folder), **purge}
        known = self._identity(name)
        if name == "wandb":
            return {
                "run_name": known["project"],
                "id": known["id"],
                "name": known["name"],
                "resume": "allow",
                "dir": str(self.folder),
            }
        return {"run_name": known["project"], "name": known["name"], "resume": "allow"}

    def _identity(self, name: str) -> dict[str, str]:
        """Project, name and id of this run in a tracker: as they were when it began, or new ones, written down."""
        path = self.folder / "trackers.json"
        known: dict[str, dict[str, str]] = files.read_json(path) if path.exists() else {}
        if name not in known or self.resume_step is None:
            mark = secrets.token_hex(4)
            here = self.folder.resolve().name
            # A name is all that trackio knows a run by, so there it must be this run's alone.
            unique = here if name == "wandb" else f"{here}-{mark}"
            known[name] = {"project": self.project, "name": unique, "id": mark}
            files.write_json(path, known)
        return known[name]


def _tracker_class(name: str) -> Any:
    from accelerate import tracking

    found = vars(tracking).get(_CLASSES[name])
    if found is None:
        raise ValueError(f"accelerate {version('accelerate')} does not know {name}: pip install -U accelerate")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name != _UNTOLD:
                flat |= _flat(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flat, and only of what every tracker takes: text, numbers, truth."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in _flat(config).items()
    }


def _drawn(image_HWC: npt.NDArray[np.uint8]) -> Any:
    """One image in a form that every version of a tracker takes."""
    from PIL import Image

    return Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC)


def _log_trackio_images(tracker: Any, images: Mapping[str, npt.NDArray[np.uint8]], step: int) -> None:
    """Accelerate's tracker of trackio has no images; trackio itself takes one a name."""
    image = importlib.import_module("trackio").Image
    shown = {f"{key}/{place}": image(_drawn(one)) for key, some in images.items() for place, one in enumerate(some)}
    tracker.log(shown, step=step)
