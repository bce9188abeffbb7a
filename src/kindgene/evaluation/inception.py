"""Inception as an extractor: FID's, sFID's and the inception score's features, from a weight file given by path.

No package brings the weights (95 MB, Apache-2.0). The file is ``pt_inception-2015-12-05-6726825d.pth``, as pytorch-fid
and torch-fidelity publish it, or the same tensors as safetensors.

Images are resized to 299x299 as TensorFlow 1 did within the network that ADM's evaluator runs: bilinear, pixel i of the
result lies at i * size / 299, without half-pixel centres and without antialiasing; then (x - 128) / 128. That is
torch-fidelity's convention too. pytorch-fid and torchmetrics resize otherwise, and their FID is not comparable.

Shapes: B batch, C channels, H height, W width, S 299.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kindgene.data.autoencoder import weights_sha256
from kindgene.evaluation.features import Extractor, Features, full_precision, to_rgb
from kindgene.evaluation.inception_network import DIMENSION, SPATIAL_CHANNELS, InceptionV3
from kindgene.files import StrPath, sha256

INPUT_SIZE = 299
FILE = "pt_inception-2015-12-05-6726825d.pth"
FILE_SHA256_BEGINS = "6726825d"
_COUNTERS = ".num_batches_tracked"  # a batch norm's, which no inference needs


class InceptionExtractor(Extractor):
    """``pool_3`` features [B, 2048], spatial ones [B, 2023] (`spatial_features`), logits without bias [B, 1008].

    `file_sha256` is the weight file's own hash, None for a network made in memory.
    """

    name = "inception"
    dimension = DIMENSION
    has_spatial = has_logits = True
    preprocessing = (
        "8 bits, grey as RGB; bilinear to 299x299 as TensorFlow 1 (ADM: no half-pixel centres, no antialiasing); "
        "(x - 128) / 128"
    )

    def __init__(self, network: InceptionV3, file_sha256: str | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.sha256 = weights_sha256(network)
        self.file_sha256 = file_sha256

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        x = to_rgb(pixels).to(self.network.fc.weight.device).float()
        with full_precision():
            pooled, spatial, logits = self.network((resize(x, INPUT_SIZE) - 128.0) / 128.0)
        return Features(pooled, spatial_features(spatial), logits)

    def to_dict(self) -> dict[str, object]:
        return {**super().to_dict(), "file_sha256": self.file_sha256}


class NamedTensors(Protocol):
    """Tensors of a file, as `kindgene.interop.checkpoint.open_weights` gives them."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""

    def read(self, key: str) -> Tensor:
        """One of them."""


def inception_of(weights: NamedTensors, path: StrPath, device: torch.device | str = "cpu") -> InceptionExtractor:
    """The extractor with the weights that the file `path` holds.

    Every tensor must be there, with its shape, and no other. Raises ValueError naming the file, its SHA-256 and what
    is wrong with it.
    """
    digest = sha256(path)
    with torch.device("meta"):
        network = InceptionV3()
    needed = {key: tuple(value.shape) for key, value in network.state_dict().items() if not key.endswith(_COUNTERS)}
    found = {key: shape for key, shape in weights.shapes().items() if not key.endswith(_COUNTERS)}
    wrong = _difference(needed, found)
    if wrong is not None:
        known = (
            "its hash is that of the public file, so this is our mistake"
            if digest.startswith(FILE_SHA256_BEGINS)
            else f"the public {FILE} has a SHA-256 that begins with {FILE_SHA256_BEGINS}"
        )
        raise ValueError(f"{path} (sha256 {digest}) does not hold FID's Inception: {wrong}; {known}")
    state = {key: weights.read(key).float() for key in needed}
    counters = [key for key in network.state_dict() if key.endswith(_COUNTERS)]
    network.load_state_dict(state | {key: torch.tensor(0) for key in counters}, strict=True, assign=True)
    return InceptionExtractor(network.to(device), digest)


def resize(images_BCHW: Tensor, size: int) -> Tensor:
    """``tf.image.resize_bilinear`` of TensorFlow 1: [B, C, S, S], values in the range they came in."""
    rows = _between(images_BCHW.transpose(2, 3), size).transpose(2, 3)
    return _between(rows, size)


def spatial_features(spatial_BCHW: Tensor) -> Tensor:
    """The first 7 channels, position by position, at each position all channels: [B, 7 * H * W] (ADM, Nash et al.)."""
    return spatial_BCHW[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _between(x: Tensor, size: int) -> Tensor:
    """The last dimension brought to `size`: entry i is x at i * (old size) / size, linear between its neighbours."""
    old = x.shape[-1]
    place = torch.arange(size, dtype=torch.float32) * torch.tensor(old / size, dtype=torch.float32)  # as TensorFlow
    low = place.long()
    share = (place - low).to(x.device)
    low = low.to(x.device)
    left, right = x[..., low], x[..., (low + 1).clamp(max=old - 1)]
    return left + (right - left) * share


def _difference(needed: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str | None:
    """The first thing that is wrong with the tensors of a file, in words."""
    for key, shape in needed.items():
        if key not in found:
            return f"{key} is missing"
        if found[key] != shape:
            return f"{key} has the shape {list(found[key])}, expected {list(shape)}"
    extra = sorted(found.keys() - needed.keys())
    return f"{extra[0]} is not part of it" if extra else None
