"""Images of Hugging Face `datasets`: saved on disk, in data files, or on the Hub; decoded on demand.

`datasets` reads the table; the images are decoded here, with the same checks and the same crop as any other's.
Neither its own decoding nor code that comes with a data set is used. Needs the extra: ``pip install 'kindgene[hf]'``.

Shapes: N images, C channels, S pixels a side.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kindgene.data.classless import tell_classless
from kindgene.data.dataset import Dataset, evenly_spaced
from kindgene.data.encoded import Check, EncodedDataset, look_through
from kindgene.data.images import Source, UnfitImageError, check_size
from kindgene.data.labels import check_known, listed, named_labels
from kindgene.progress import Progress


@dataclass(frozen=True, eq=False, kw_only=True)
class HuggingFaceDataset(EncodedDataset):
    """Images of a table, decoded on demand; `load_hf` makes it.

    table: a `datasets.Dataset` whose images are not decoded; rows: which of its rows these are, int64 [N].
    """

    table: Any
    column: str
    origin: str
    rows: npt.NDArray[np.int64]

    def source(self, index: int) -> Source:
        cell = self.table[int(self.rows[index])][self.column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise UnfitImageError("empty", "holds no image", "remove it")
        return Path(cell["path"]) if cell["bytes"] is None else io.BytesIO(cell["bytes"])

    def name(self, index: int) -> str:
        return f"row {self.rows[index]} of {self.origin}"

    def where(self, kept: Tensor) -> Self:
        """The images where `kept` (bool [N]) is true, all classes kept."""
        return replace(self, labels=self.labels[kept], rows=self.rows[kept.numpy()])

    def fingerprint(self) -> dict[str, Any]:
        """As of any `Dataset`, but of the images as they are stored, which need not be decoded for it."""
        images = hashlib.sha256()
        for index in evenly_spaced(len(self)).tolist():
            stored = self.source(index)
            images.update(stored.read_bytes() if isinstance(stored, Path) else stored.read())
        return {
            "images": len(self),
            "class_names": list(self.class_names),
            "flip": self.flip,
            "labels_sha256": hashlib.sha256(self.labels.numpy().tobytes()).hexdigest(),
            "stored_images_sha256": images.hexdigest(),
            "shape": list(self.shape),
        }


def load_hf(
    name_or_path: str | Path,
    size: int,
    channels: int = 3,
    *,
    split: str = "train",
    config: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    classes: Sequence[str] | None = None,
    strict: bool = False,
    flip: bool = False,
    min_side: int | None = None,
    in_memory: bool | None = None,
    check: Check = "headers",
    progress: Progress | None = None,
) -> Dataset:
    """The images of a Hugging Face data set, [N, channels, size, size] in [-1, 1] when drawn.

    `name_or_path` is a folder that `save_to_disk` wrote, a folder of data files (Parquet, say), or a data set's id on
    the Hub, of which `split`, and `config` where it has several, are taken. Class names are those of the label column's
    `ClassLabel`; of other columns, the integers or texts that occur, sorted. -1 and empty are images without class;
    `label_column` None: one class, named after the data set. `classes`: only these, in this order. All else is as in
    `kindgene.data.folder.load_folder`.

    Raises ValueError where `datasets` is not installed, the data set or a part of it is not there, a column is
    missing, is not of images or not of labels, and as `load_folder` does.
    """
    check_size(size, channels)
    origin = str(name_or_path)
    table = _table(origin, split, config)
    columns = [column for column in (image_column, label_column) if column is not None]
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(f"{origin} has no column {missing[0]!r}; it has {listed(table.column_names)}")
    if not len(table):
        raise ValueError(f"{origin} has no rows in the split {split!r}")
    labels, class_names = _labels(table, label_column, origin)
    candidates = HuggingFaceDataset(
        labels=labels,
        class_names=class_names,
        size=size,
        channels=channels,
        flip=flip,
        min_side=size if min_side is None else min_side,
        table=_undecoded(table, image_column, origin),
        column=image_column,
        origin=origin,
        rows=np.arange(len(table)),
    )
    if classes is not None:
        check_known(classes, class_names, origin)
        candidates = candidates.subset(classes)
    dataset = look_through(candidates, (), origin, strict=strict, in_memory=in_memory, check=check, progress=progress)
    tell_classless(dataset.labels, dataset.class_names, origin, "have no label (-1 or empty)")
    return dataset


def is_saved(path: str | Path) -> bool:
    """Whether a folder is what `save_to_disk` of `datasets` writes."""
    root = Path(path)
    return (root / "dataset_dict.json").is_file() or all(
        (root / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def _table(origin: str, split: str, config: str | None) -> Any:
    """The `datasets.Dataset` of that name."""
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise ValueError(f"{origin} is read by datasets: pip install 'kindgene[hf]'") from error
    try:
        if not is_saved(origin):
            return datasets.load_dataset(origin, config, split=split)
        saved = datasets.load_from_disk(origin)
    except (OSError, ValueError, RuntimeError, LookupError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{origin} cannot be loaded as a data set: {_line(error)}") from error
    parts = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    if split not in parts:
        raise ValueError(f"{origin} has no split {split!r}; it has {listed(parts)}")
    return parts[split]


def _undecoded(table: Any, column: str, origin: str) -> Any:
    """The column alone, its images as they are stored."""
    features = import_module("datasets").features
    found = table.features[column]
    plain = isinstance(found, features.Value) and found.dtype in ("binary", "large_binary", "string", "large_string")
    if not (plain or isinstance(found, features.Image)):
        raise ValueError(f"the column {column!r} of {origin} does not hold images but {_line(found)}")
    return table.select_columns([column]).cast_column(column, features.Image(decode=False))


def _labels(table: Any, column: str | None, origin: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 [N], and class names."""
    if column is None:
        return torch.zeros(len(table), dtype=torch.int64), (Path(origin).name,)
    features = import_module("datasets").features
    feature = table.features[column]
    if not isinstance(feature, features.ClassLabel | features.Value):
        raise ValueError(f"the column {column!r} of {origin} does not hold labels but {_line(feature)}")
    values: Sequence[object] = table.select_columns([column])[:][column]
    try:
        return named_labels(values, feature.names if isinstance(feature, features.ClassLabel) else None)
    except ValueError as error:
        raise ValueError(f"the column {column!r} of {origin}: {error}") from error


def _line(what: object) -> str:
    return " ".join(str(what).split())
