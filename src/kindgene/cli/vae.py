"""The autoencoder that ``--vae`` names, and the one that a model was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
_PIXELS = (1, 3)
_PART = "vae"  # where a whole pipeline keeps its autoencoder


def load(name: str) -> Any:
    """An `AutoencoderKL` in a folder or on the Hub: of its own, or the part ``vae`` of a whole pipeline.

    Raises ValueError, in one line, for what is none.
    """
    from kindgene.interop.vae import load_vae
    from kindgene.pool.hub import is_repository

    folder = Path(name)
    if not folder.is_dir():
        if not is_repository(name):
            raise ValueError(f"{name} is not a folder, nor a Hub repository, which is written user/name")
        folder = _fetch(name)
    if not (folder / _FILES[0]).is_file() and (folder / _PART / _FILES[0]).is_file():
        folder = folder / _PART
    return load_vae(folder)


def recorded_name(name: str) -> str:
    """What is written down of it: a Hub id as it is; of a folder its name, for where it lies is nobody's business."""
    folder = Path(name)
    return folder.resolve().name if folder.is_dir() else name


def trained_with(model: Path) -> dict[str, Any] | None:
    """What a run or a pool on disk tells of the VAE of the latents that it was trained on: its name and hash."""
    from kindgene.files import read_json

    told: Any = None
    if (model / "run.json").is_file():
        told = read_json(model / "run.json")
    elif (model / "config.json").is_file():
        told = read_json(model / "config.json")
        told = told.get("provenance") if isinstance(told, dict) else None
    data = told.get("data") if isinstance(told, dict) else None
    vae = data.get("vae") if isinstance(data, dict) else None
    return vae if isinstance(vae, dict) else None


def of_model(model: Path, channels: int, vae: str | None) -> Any:
    """What decodes the model's latents; None for a model of pixels. ValueError for what does not go together."""
    from kindgene.interop.vae import check_vae

    told = trained_with(model)
    if vae is None:
        if channels in _PIXELS and told is None:
            return None
        which = f", {told['name']}" if told is not None and told.get("name") else ""
        raise ValueError(
            f"{model} makes {channels} channels; only pixel-space models (1 or 3) make a picture by themselves: "
            f"give --vae, the folder or Hub id of the VAE that it was trained with{which}"
        )
    autoencoder = load(vae)
    check_vae(autoencoder, channels)
    if told is not None:
        check_same(autoencoder, told, str(model))
    return autoencoder


def check_same(vae: Any, told: dict[str, Any], of: str) -> None:
    """Raises ValueError for another autoencoder than the one with which `of` was made."""
    from kindgene.data.autoencoder import weights_sha256

    found = weights_sha256(vae)
    if found != told["sha256"]:
        name = told.get("name") or "a VAE"
        raise ValueError(
            f"{of} was made with {name} (sha256 {told['sha256'][:16]}), and this VAE is another ({found[:16]})"
        )


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=[*_FILES, *(f"{_PART}/{file}" for file in _FILES)]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"there is no folder {name!r} here, and the Hub did not give it: {told}") from error
