"""The samples that cells kept, put together: a row a model, a column a sample."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import torch

from kindgene.studies.figures import image_grid
from kindgene.studies.page import Picture
from kindgene.studies.strips import read_strip


def samples_picture(strips: Mapping[str, str | Path], caption: str, file: str = "samples") -> Picture:
    """One grid of the strips, labelled by their keys; those of fewer images are filled up with empty ones."""
    rows = {label: read_strip(Path(path)) for label, path in strips.items()}
    longest = max(len(images) for images in rows.values())
    filled = []
    for images in rows.values():
        empty = torch.full((longest - len(images), *images.shape[1:]), -1.0)
        filled.append(torch.cat([images, empty]))
    uri = image_grid(torch.cat(filled), len(rows), longest, row_labels=list(rows))
    return Picture(file, caption, base64.b64decode(uri.partition(",")[2]))
