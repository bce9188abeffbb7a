"""Where the verbs get models from: a run, a pool, a merged model; and the data that goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kindgene.cli import options
from kindgene.cli.data import load_data as load_data

if TYPE_CHECKING:
    import torch

    from kindgene.core.decomposable import Decomposable
    from kindgene.data.dataset import Dataset
    from kindgene.models.dit import DiT
    from kindgene.pool.plan import Plan
    from kindgene.pool.pool import Pool

PROVENANCE_FILE = "provenance.json"

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Loaded:
    """A model to sample from; `weights` says which ones it has: "ema", "raw", or None where that is not recorded."""

    model: Any
    weights: str | None


def read_run(run: Path) -> dict[str, Any]:
    """What run.json says of a run: its configuration, data, model and seed."""
    from kindgene.files import read_json

    if not (run / "run.json").is_file():
        raise ValueError(f"{run} has no run.json, so it is not the folder of a run")
    facts = read_json(run / "run.json")
    if not isinstance(facts, dict) or not all(isinstance(facts.get(key), dict) for key in ("config", "data", "model")):
        raise ValueError(f"{run / 'run.json'} does not describe a run")
    return facts


def load_run(run: Path, facts: Mapping[str, Any], weights: Weights) -> tuple[DiT | Decomposable, int]:
    """The model of a run's latest whole checkpoint, and its step."""
    from kindgene import DiT, KindConfig, make_decomposable
    from kindgene.training.run import load_checkpoint_model

    backbone, kind = facts["model"]["backbone"], facts["model"]["kind"]
    dense: DiT = DiT.from_config({**backbone, "class_names": facts["data"]["class_names"]})
    model = dense if kind is None else make_decomposable(dense, KindConfig(**kind))
    return model, load_checkpoint_model(run, model, weights=weights)


def load_any(path: Path, classes: Sequence[str] | None) -> Loaded:
    """A pool (recombined for `classes`), a merged model, or a run (its EMA weights where it kept any)."""
    from kindgene.diffusion.sampler import resolve_classes
    from kindgene.files import read_json
    from kindgene.pool.hub import is_repository

    if not path.exists() and is_repository(str(path)):
        loaded = _load_pool(path, classes)
    elif not path.is_dir():
        raise ValueError(f"{path} is not a folder; give a pool, a merged model, or the folder of a run")
    elif (path / "config.json").exists():
        config = read_json(path / "config.json")
        merged = isinstance(config, dict) and config.get("_class_name") == "DiT"
        loaded = _load_merged(path) if merged else _load_pool(path, classes)
    elif (path / "run.json").exists():
        facts = read_run(path)
        weights: Weights = "ema" if facts["config"]["ema_decay"] > 0 else "raw"
        loaded = Loaded(load_run(path, facts, weights)[0], weights)
    else:
        raise ValueError(f"{path} holds neither a pool, nor a merged model, nor a run")
    if loaded.model.class_names is None:
        raise ValueError(f"the classes of {path} have no names, so none can be asked for here")
    if classes is not None:
        resolve_classes(loaded.model, classes)  # names that it does not have are refused here, before any work
    return loaded


def open_pool(path: Path, classes: Sequence[str] | None, *, learngene_only: bool = False) -> Pool:
    """A pool of DiTs, with the tailors of `classes` (None: all), or with the learngene only."""
    from kindgene import Pool

    pool = Pool.from_pretrained(str(path), classes=classes, learngene_only=learngene_only)
    if pool.config.backbone != "DiT":
        raise ValueError(f"{path} is a pool of {pool.config.backbone}; the command line works with DiT alone")
    return pool


def plan_of(
    pool: Pool,
    names: Sequence[str],
    *,
    form: str,
    dtype: str | None,
    max_params: str | None,
    max_macs: str | None,
    max_bytes: str | None,
    max_latency: str | None,
    device: str | None,
    calibrate: str | None,
) -> Plan:
    """The plan that a command line asks for; `calibrate` names the images that components are weighed by."""
    calibration = None
    if calibrate is not None:
        from kindgene.diffusion.path import DiffusionPath
        from kindgene.evaluation.denoising import calibration_batches
        from kindgene.pool.backbones import floating_dtype

        path = DiffusionPath.of(pool.config.backbone_config)
        images = data_of(pool, calibrate, names)
        calibration = calibration_batches(images, path, dtype=floating_dtype(pool.learngene))
    return pool.plan(
        names,
        max_parameters=options.size(max_params),
        max_macs=options.size(max_macs),
        max_bytes=options.byte_size(max_bytes),
        max_latency_ms=options.milliseconds(max_latency),
        device=str(find_device(device)),
        form=form,  # type: ignore[arg-type]  # checked there
        dtype=dtype,
        calibration=calibration,
    )


def data_of(pool: Pool, data: str, classes: Sequence[str] | None) -> Dataset:
    """Images of the size that a pool of DiTs draws."""
    config = pool.config.backbone_config
    return load_data(data, classes, int(config["input_size"]), int(config["in_channels"]))


def find_device(name: str | None) -> torch.device:
    """The device of that name; None: a GPU where there is one, else the CPU."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        raise ValueError(f"there is no device {name!r} here") from error
    if device.type == "meta":
        raise ValueError("the meta device computes nothing")
    return device


def _load_pool(path: Path, classes: Sequence[str] | None) -> Loaded:
    pool = open_pool(path, classes)
    return Loaded(pool.recombine(classes or pool.classes), pool.config.weights)


def _load_merged(path: Path) -> Loaded:
    """In the dtype it was saved in and with the weights it was made of, where its record is there to tell."""
    import torch

    from kindgene import DiT
    from kindgene.files import read_json
    from kindgene.pool.plan import Plan

    source = path / PROVENANCE_FILE
    if not source.exists():
        return Loaded(DiT.from_pretrained(path), None)
    record = read_json(source)
    if not isinstance(record, dict) or not isinstance(record.get("weights"), str):
        raise ValueError(f"{source} is not the record of kindgene recombine")
    plan = Plan.from_json(record.get("plan"), str(source))
    return Loaded(DiT.from_pretrained(path, torch_dtype=getattr(torch, plan.dtype)), record["weights"])
