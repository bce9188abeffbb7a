"""The autoencoder of a latent-space model: diffusers' `AutoencoderKL`, read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch

from kindgene.files import StrPath, read_json


def load_vae(folder: StrPath, dtype: torch.dtype | None = None) -> Any:
    """An AutoencoderKL's folder, in `dtype` (None: float32), from safetensors alone.

    Raises ValueError for a folder that is none, or whose weights do not fit its configuration.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, so it is not the folder of an AutoencoderKL")
    config = read_json(folder / "config.json")
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "AutoencoderKL":
        raise ValueError(f"{folder} holds a {kind}, not an AutoencoderKL")
    options = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    vae, info = AutoencoderKL.from_pretrained(folder, torch_dtype=dtype, **options)
    wrong = [f"{what}: {keys}" for what, keys in info.items() if keys]
    if wrong:
        raise ValueError(f"the weights in {folder} do not fit their config.json: {'; '.join(wrong)[:300]}")
    return vae.requires_grad_(False).eval()


def check_vae(vae: Any, channels: int) -> None:
    """Raises ValueError for an autoencoder whose latents are not what the model makes."""
    found = vae.config.latent_channels
    if found != channels:
        raise ValueError(f"the VAE's latents have {found} channels, the model makes {channels}")


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the weights in a model's folder: diffusers makes them float32 unless it is told another."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors file")
    with safetensors.safe_open(files[0], framework="pt") as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return dtype
