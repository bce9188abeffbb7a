"""Real images as what samples are compared with: statistics of a data set, kept in a file with all they depend on.

The file is safetensors: ``mean``, ``covariance`` (float64), for Inception ``spatial_mean``, ``spatial_covariance``, and
``features`` (float32, of at most so many evenly spaced images) for precision and recall; one metadata entry, JSON, says
extractor and hash, data, classes, count, preprocessing and versions. ADM's published archives (``mu``, ``sigma``,
``mu_s``, ``sigma_s``) are read too, for Inception.

Shapes: N images, D features, S spatial features.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kindgene.data.dataset import Dataset
from kindgene.evaluation.features import Extractor, batches_of
from kindgene.evaluation.meter import Keep, Meter
from kindgene.evaluation.statistics import Gaussian
from kindgene.files import StrPath, read_metadata, read_safetensors, sha256, write_safetensors
from kindgene.progress import NoProgress, Progress

FEATURES_KEPT = 10_000  # as many as ADM's reference batches hold
_METADATA = "kindgene"
_FORMAT = 1
_ADM_KEYS = ("mu", "sigma")
_ADM_SPATIAL = ("mu_s", "sigma_s")
# What numpy raises for a file that is no archive, or a damaged one.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real images; `features` [N, D] are those kept for precision and recall, None: none.

    `facts` is what a result says of it: plain data for JSON, with "extractor" as of `Extractor.to_dict`.
    """

    pooled: Gaussian
    spatial: Gaussian | None
    features: Tensor | None
    facts: dict[str, Any]


def make_reference(
    dataset: Dataset,
    extractor: Extractor,
    *,
    data: str,
    features: int = FEATURES_KEPT,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Reference:
    """The reference of all images of a data set, which goes by the name `data`; `progress` hears of images.

    Raises ValueError for fewer than two images, and for images that the extractor does not take.
    """
    count = len(dataset)
    if count < 2:
        raise ValueError(f"{data} has {count} image; a reference needs at least 2")
    meter = Meter(extractor, count, Keep(spatial=extractor.has_spatial, features=features))
    progress = NoProgress() if progress is None else progress
    progress.start(count)
    for pixels, numbers in batches_of(dataset, batch_size):
        meter.update(pixels, numbers)
        progress.update(meter.count)
    progress.close()
    facts = {
        "data": data,
        "images": count,
        "shape": list(dataset.shape),
        "classes": list(dataset.class_names),
        "fingerprint": {key: value for key, value in dataset.fingerprint().items() if key != "class_names"},
        "extractor": extractor.to_dict(),
        "versions": {name: version(name) for name in ("kindgene", "torch")},
    }
    spatial = None if meter.spatial is None else meter.spatial.gaussian()
    return Reference(meter.pooled.gaussian(), spatial, meter.features(), facts)


def with_features(reference: Reference, dataset: Dataset, extractor: Extractor, batch_size: int = 64) -> Reference:
    """The reference with the features of these images (ADM's archives hold 10,000 beside statistics of all)."""
    meter = Meter(extractor, len(dataset), Keep(features=len(dataset)))
    for pixels, numbers in batches_of(dataset, batch_size):
        meter.update(pixels, numbers)
    return replace(reference, features=meter.features())


def write_reference(path: StrPath, reference: Reference) -> None:
    """Writes the file, whole or not at all."""
    tensors = {"mean": reference.pooled.mean, "covariance": reference.pooled.covariance}
    if reference.spatial is not None:
        tensors |= {"spatial_mean": reference.spatial.mean, "spatial_covariance": reference.spatial.covariance}
    if reference.features is not None:
        tensors["features"] = reference.features
    write_safetensors(path, tensors, {_METADATA: json.dumps({"format": _FORMAT, **reference.facts}, sort_keys=True)})


def read_reference(path: StrPath, extractor: Extractor) -> Reference:
    """The reference of a file, for samples measured with `extractor`; its facts then have the file's SHA-256 too.

    Raises ValueError naming the file for another extractor, other weights or another preprocessing than it was made
    with, and for a file that is damaged or no reference.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return _read_adm(path, extractor)
    try:
        facts = json.loads(read_metadata(path)[_METADATA])
        made_with = facts["extractor"]
        known = facts.pop("format") == _FORMAT
        images = int(facts["images"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a reference of kindgene reference") from error
    if not known:
        raise ValueError(f"{path} has another format than {_FORMAT}; make it anew with kindgene reference")
    _check_extractor(path, made_with, extractor)
    tensors = read_safetensors(path)
    needed = {"mean", "covariance"} | ({"spatial_mean", "spatial_covariance"} if extractor.has_spatial else set())
    if not needed <= tensors.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(needed - tensors.keys()))}; make it anew")
    spatial = None
    if extractor.has_spatial:
        spatial = Gaussian(tensors["spatial_mean"], tensors["spatial_covariance"], images)
    pooled = Gaussian(tensors["mean"], tensors["covariance"], images)
    return Reference(pooled, spatial, tensors.get("features"), {"file_sha256": sha256(path), **facts})


def is_reference(name: str) -> bool:
    """Whether a name is that of a file with statistics, rather than of data."""
    path = Path(name)
    if path.suffix.lower() == ".safetensors":
        return True
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{_ADM_KEYS[0]}.npy" in archive.namelist()
    except zipfile.BadZipFile:
        return False


def made_with(name: str) -> str | None:
    """The name of the extractor that a reference file was made with; None for what is no such file."""
    path = Path(name)
    if not is_reference(name) or not path.is_file():
        return None
    if path.suffix.lower() == ".npz":
        return "inception"
    try:
        return str(json.loads(read_metadata(path)[_METADATA])["extractor"]["name"])
    except (KeyError, TypeError, json.JSONDecodeError):
        return None


def _check_extractor(path: Path, made_with: dict[str, Any], extractor: Extractor) -> None:
    here = extractor.to_dict()
    for key, called in (("name", "extractor"), ("sha256", "weights"), ("preprocessing", "preprocessing")):
        if made_with.get(key) != here[key]:
            raise ValueError(
                f"{path} was made with another {called} ({made_with.get(key)}) than these samples are measured with "
                f"({here[key]}): the two do not compare"
            )


def _read_adm(path: Path, extractor: Extractor) -> Reference:
    """ADM's archive: float64 statistics of the whole reference set. It does not say of how many images."""
    if extractor.name != "inception":
        raise ValueError(f"{path} has Inception's statistics, and the extractor is {extractor.name}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {key: torch.from_numpy(archive[key]).double() for key in (*_ADM_KEYS, *_ADM_SPATIAL)}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read as ADM's statistics ({error})") from error
    facts = {
        "data": path.name,
        "images": None,
        "extractor": "not recorded in ADM's archives: taken to be Inception 2015-12-05 with ADM's preprocessing",
        "file_sha256": sha256(path),
    }
    pooled = Gaussian(found["mu"], found["sigma"], None)
    spatial = Gaussian(found["mu_s"], found["sigma_s"], None)
    if (pooled.dimension, spatial.dimension) != (2048, 2023):
        raise ValueError(f"{path} has {pooled.dimension} and {spatial.dimension} features; ADM's have 2048 and 2023")
    return Reference(pooled, spatial, None, facts)
