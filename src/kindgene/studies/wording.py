"""How reports speak of a study's data and eyes, from the settings that its results keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def of_data(settings: Mapping[str, Any], classes: int) -> str:
    """``24 glyph classes of 200 images (16x16 pixels)``."""
    source = settings.get("source")
    if source is None:
        size = settings["image_size"]
        return f"{classes} glyph classes of {settings['per_class']} images ({size}x{size} pixels)"
    pixels, vae = source["pixels"], source["vae"]["name"]
    held_out = source["held_out"]
    return f"{classes} superclasses of ImageNet ({pixels}x{pixels} pixels as latents of {vae}; held out: {held_out})"


def of_judge(settings: Mapping[str, Any]) -> str:
    """Who recognises: ``a network that learned all glyph classes``."""
    source = settings.get("source")
    if source is None:
        return "a network that learned all glyph classes"
    return f"a linear classifier on the features of {source['extractor']['name']}"


def of_features(settings: Mapping[str, Any]) -> str:
    """Whose features the Frechet distance compares: ``a glyph network``."""
    source = settings.get("source")
    return "a glyph network" if source is None else str(source["extractor"]["name"])


def of_loss(settings: Mapping[str, Any]) -> str:
    """What the loss is the squared error of."""
    return "v" if settings.get("prediction", "v") == "v" else "the noise"


def of_command(summary: Mapping[str, Any]) -> str:
    """What a command names beside study, scale and seeds: data and VAE that do not come with the package."""
    settings = summary.get("settings", {})
    source = settings.get("pretraining", settings).get("source")
    if source is None:
        return ""
    far = " --far FOLDER" if summary["study"] == "shift" else ""
    return f" --data FOLDER --vae {source['vae']['name']}{far}"


def share(figure: float) -> str:
    """``93.1 %``."""
    return f"{100 * figure:.1f} %"
