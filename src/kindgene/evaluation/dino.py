"""DINOv2 as an extractor: for images that Inception, trained on ImageNet's classes, has no eye for.

FD-DINOv2 (Stein et al. 2023, also FDD) is the Frechet distance on the class token after the last norm of DINOv2
ViT-L/14, ``facebook/dinov2-large`` (1,024 features).
Images are resized to 224x224, bicubic with antialiasing, and normalised with
ImageNet's mean and deviation, as in EDM2's evaluation. transformers interpolates the position table to that size a
little differently from the original code: figures compare among results that say the same preprocessing and hash.

Shapes: B batch, C channels, H height, W width, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import Tensor

from kindgene.data.autoencoder import weights_sha256
from kindgene.evaluation.features import Extractor, Features, full_precision, to_rgb
from kindgene.files import read_json
from kindgene.pool.hub import is_repository

INPUT_SIZE = 224
_FILES = ("config.json", "model.safetensors")
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, in torchvision's reference training
_DEVIATION = (0.229, 0.224, 0.225)
_KIND = "dinov2"


class DinoExtractor(Extractor):
    """Class tokens [B, D] of a ``Dinov2Model`` of transformers."""

    name = "dinov2"
    preprocessing = (
        "8 bits, grey as RGB; bicubic with antialiasing to 224x224; ImageNet's mean and deviation; "
        "position table interpolated by transformers"
    )

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.dimension = int(model.config.hidden_size)
        self.sha256 = weights_sha256(model)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Features:
        x = to_rgb(pixels).to(self.model.device).float() / 255.0
        x = F.interpolate(x, size=(INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True, align_corners=False)
        x = (x - x.new_tensor(_MEAN)[:, None, None]) / x.new_tensor(_DEVIATION)[:, None, None]
        with full_precision():
            return Features(self.model(pixel_values=x).pooler_output.float())


def load_dino(source: str, device: torch.device | str = "cpu") -> DinoExtractor:
    """The extractor in a folder (config.json, model.safetensors) or of a Hub id.

    Raises ValueError, in one line, for what is neither, is no DINOv2, or lacks weights; and without transformers.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError("the dinov2 extractor needs transformers: pip install transformers") from error

    folder = Path(source)
    if not folder.is_dir():
        if not is_repository(source):
            raise ValueError(f"{source} is not a folder, nor a Hub id such as facebook/dinov2-large")
        folder = _fetch(source)
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise ValueError(f"{source} has no {missing[0]}; a DINOv2 of transformers has {' and '.join(_FILES)}")
    config = read_json(folder / _FILES[0])
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != _KIND:
        raise ValueError(f"{source} is a model of type {kind!r}, not {_KIND!r}")
    try:
        model, told = transformers.Dinov2Model.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{source} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    wrong = sorted(map(str, told["missing_keys"])) + sorted(map(str, told["mismatched_keys"]))
    if wrong:
        raise ValueError(f"the weights of {source} lack {wrong[0]}, or have it in another shape")
    return DinoExtractor(model.to(device))


def _fetch(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"there is no folder {repository!r} here, and the Hub did not give it: {told}") from error
