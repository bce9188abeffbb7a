"""What several verbs need: class lists, sizes, data sets, and run folders that describe their own model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kindgene.core.decomposable import Decomposable
    from kindgene.data.arrays import ArrayDataset
    from kindgene.models.dit import DiT

MODEL_FILE = "model.json"


def class_list(text: str | None) -> list[str] | None:
    """``0,1,2`` as names; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",")]


def size(text: str | None) -> int | None:
    """``300k``, ``1.2M`` or a plain number."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmMgG]?)", text.strip())
    if match is None:
        raise ValueError(f"a number of parameters is written 300k, 1.2M or 300000, got {text!r}")
    return int(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2].lower()])


def new_folder(path: Path) -> None:
    """Refuses a folder that holds something, before any work."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not empty; choose a new folder (nothing was written)")


def load_data(data: str, classes: list[str] | None, image_size: int, channels: int) -> ArrayDataset:
    """``digits``, or a folder with one folder of images a class."""
    from kindgene import load_digits, load_folder

    found = load_digits() if data == "digits" else load_folder(data, image_size, channels)
    return found if classes is None else found.subset(classes)


def save_recipe(run: Path, backbone: Mapping[str, Any], kind: Mapping[str, Any] | None) -> None:
    """Writes what `load_run` needs to build the run's model again."""
    from kindgene.files import write_json

    run.mkdir(parents=True, exist_ok=True)
    plain = {key: value for key, value in backbone.items() if not key.startswith("_")}
    write_json(run / MODEL_FILE, {"backbone": plain, "kind": kind})


def build(recipe: Mapping[str, Any], seed: int = 0) -> DiT | Decomposable:
    """The model of a recipe, freshly initialised from `seed`."""
    import torch

    from kindgene import DiT, KindConfig, make_decomposable

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = DiT(**recipe["backbone"])
        return dense if recipe["kind"] is None else make_decomposable(dense, KindConfig(**recipe["kind"]))


def load_run(run: Path, weights: str) -> DiT | Decomposable:
    """The model of a run folder, from its latest whole checkpoint."""
    from kindgene.files import read_json
    from kindgene.training.run import load_checkpoint_model

    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    if not (run / MODEL_FILE).exists():
        raise ValueError(f"{run} has no {MODEL_FILE}, so it is not a run of kindgene pretrain")
    model = build(read_json(run / MODEL_FILE))
    load_checkpoint_model(run, model, weights=weights)  # type: ignore[arg-type]
    return model


def load_any(path: Path, classes: list[str] | None) -> Any:
    """A model to sample from: a pool (recombined for `classes`), a saved merged model, or a run folder."""
    from kindgene import DiT, Pool
    from kindgene.files import read_json

    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give a pool, a saved model or a run")
    if (path / MODEL_FILE).exists():
        return load_run(path, "ema")
    if not (path / "config.json").exists():
        raise ValueError(f"{path} holds neither a pool, nor a saved model, nor a run")
    if read_json(path / "config.json").get("_class_name") == "DiT":
        return DiT.from_pretrained(path)
    pool = Pool.from_pretrained(path, classes=classes)
    return pool.recombine(classes or list(pool.classes))
