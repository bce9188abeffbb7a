"""An extractor without weights: layout and colour alone, for images that no network is at hand for.

A Frechet distance of these features tells whether samples have the right light in the right places, not what they show:
a stand-in that orders models roughly, and is named in every result. Ours.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib

import torch.nn.functional as F
from torch import Tensor

from kindgene.evaluation.features import Extractor, Features, to_rgb

_SIDE = 8


class PixelExtractor(Extractor):
    """Images averaged to 8x8 pixels of three channels: [B, 192] in [-1, 1]."""

    name = "pixels"
    dimension = 3 * _SIDE**2
    preprocessing = "8 bits, grey as RGB; averaged to 8x8 pixels; scaled to -1 .. 1"
    sha256 = hashlib.sha256(preprocessing.encode()).hexdigest()

    def __call__(self, pixels: Tensor) -> Features:
        small = F.adaptive_avg_pool2d(to_rgb(pixels).float(), _SIDE)
        return Features((small / 127.5 - 1.0).flatten(1))
