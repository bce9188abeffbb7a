"""What a study's settings say beside its sizes where models see a VAE's latents, as the published DiT do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kindgene.models.presets import find_preset


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Put before a study's settings: ``class LatentSettings(Latents, Settings)``.

    What the published DiT were trained with (`kindgene.recipes`): four channels, noise predicted, sigma learned, no
    clipping of gradients. `per_class` and `held_out` of such settings are 0: the source takes all images there are.
    """

    in_channels: int = 4
    learn_sigma: bool = True
    prediction: str = "epsilon"
    gradient_clip: float | None = None
    num_workers: int = 8
    checkpoint_every: int = 5_000


def preset_sizes(name: str) -> dict[str, Any]:
    """The sizes of a published DiT as studies call them."""
    preset = find_preset(name)
    return {
        "image_size": int(preset.data["input_size"]),
        "patch_size": preset.patch_size,
        "width": preset.hidden_size,
        "depth": preset.depth,
        "heads": preset.num_heads,
    }


def backbone_choices(settings: object) -> dict[str, Any]:
    """Of `DiT`, what goes with the settings' data: grey images and v, or latents."""
    if isinstance(settings, Latents):
        return {
            "in_channels": settings.in_channels,
            "learn_sigma": settings.learn_sigma,
            "prediction": settings.prediction,
        }
    return {"in_channels": 1, "learn_sigma": False, "prediction": "v"}


def train_choices(settings: object) -> dict[str, Any]:
    """Of `TrainConfig`, what goes with the settings' data."""
    if isinstance(settings, Latents):
        names = ("gradient_clip", "num_workers", "checkpoint_every")
        return {name: getattr(settings, name) for name in names}
    return {}
