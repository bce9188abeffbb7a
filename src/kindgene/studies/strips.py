"""Small pictures that cells leave and reports put together: images side by side in one PNG, nothing added."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kindgene.evaluation.features import to_pixels
from kindgene.files import write_bytes

_LARGEST = 64  # pixels a side: enough to see what is shown, and a picture stays small


def write_strip(path: Path, images: Tensor) -> None:
    """Writes images [N, C, H, W] in [-1, 1] side by side, C 1 or 3; large ones reduced."""
    if images.shape[-1] > _LARGEST:
        images = F.interpolate(images, size=(_LARGEST, _LARGEST), mode="area")
    pixels = to_pixels(images).permute(2, 0, 3, 1).flatten(1, 2)
    data = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(data, "PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data.getvalue())


def read_strip(path: Path) -> Tensor:
    """The square images of a strip: [N, C, H, H] in [-1, 1]. Raises ValueError naming a file that is none."""
    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: is not a picture that a cell wrote; remove it and its .json: {error}") from error
    pixels = pixels.unsqueeze(-1) if pixels.ndim == 2 else pixels
    side = len(pixels)
    if pixels.shape[1] % side:
        raise ValueError(f"{path}: is {pixels.shape[1]}x{side}, not square images side by side")
    images: Tensor = pixels.unflatten(1, (-1, side)).permute(1, 3, 0, 2)
    return images / 127.5 - 1
