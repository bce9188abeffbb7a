"""What an `AutoencoderKL` of diffusers is to the data: images to posteriors, latents back to images, and its scale.

Models train on latents of about unit variance, which the autoencoder's own configuration says how to make:

- ``scaling_factor`` alone: ``x = z * scaling_factor``;
- with ``shift_factor``: ``x = (z - shift_factor) * scaling_factor``;
- with ``latents_mean`` and ``latents_std``, a number a channel: ``x = (z - mean) * scaling_factor / std``.

Source: what diffusers' own pipelines do with each (``StableDiffusionPipeline``, ``FluxPipeline``,
``StableDiffusionXLPipeline``).

Shapes: B images, C channels of a latent, h, w its size; H, W of an image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

DECODED_AT_ONCE = 16
"""Latents decoded at a time (ours): activations in the decoder are far larger than an image."""


@dataclass(frozen=True)
class LatentScale:
    """How an autoencoder's latents are brought to about unit variance. ValueError for what cannot be.

    latents_mean, latents_std: a number a channel, both or neither.
    """

    scaling_factor: float
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not _positive(self.scaling_factor):
            raise ValueError(f"the VAE's scaling_factor is {self.scaling_factor!r}; it must be a number above 0")
        if not isinstance(self.shift_factor, int | float) or not math.isfinite(self.shift_factor):
            raise ValueError(f"the VAE's shift_factor is {self.shift_factor!r}; it must be a number")
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("the VAE has only one of latents_mean and latents_std; both are needed, or neither")
        if self.latents_mean is None or self.latents_std is None:
            return
        if self.shift_factor:
            raise ValueError("the VAE has a shift_factor and latents_mean too; which of them counts is not known")
        object.__setattr__(self, "latents_mean", tuple(self.latents_mean))
        object.__setattr__(self, "latents_std", tuple(self.latents_std))
        if len(self.latents_mean) != len(self.latents_std) or not all(map(_positive, self.latents_std)):
            raise ValueError("the VAE's latents_mean and latents_std must be as many numbers, the latter above 0")

    @classmethod
    def of(cls, vae: Any) -> Self:
        """That of an autoencoder, from its configuration."""
        config = vae.config
        return cls(
            config.get("scaling_factor"),
            config.get("shift_factor") or 0.0,
            config.get("latents_mean"),
            config.get("latents_std"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        return cls(**value)

    def scaled(self, latents: Tensor) -> Tensor:
        """An autoencoder's latents [B, C, h, w] as a model sees them."""
        if self.latents_mean is None or self.latents_std is None:
            return (latents - self.shift_factor) * self.scaling_factor
        return (latents - _channels(self.latents_mean, latents)) * self.scaling_factor / self._std(latents)

    def unscaled(self, latents: Tensor) -> Tensor:
        """The reverse."""
        if self.latents_mean is None or self.latents_std is None:
            return latents / self.scaling_factor + self.shift_factor
        return latents * self._std(latents) / self.scaling_factor + _channels(self.latents_mean, latents)

    def _std(self, latents: Tensor) -> Tensor:
        assert self.latents_std is not None
        return _channels(self.latents_std, latents)


def side_factor(vae: Any) -> int:
    """By how much an `AutoencoderKL` divides the sides of images."""
    factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
    return factor


def latent_shape(vae: Any, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, h, w) of the latents of images (channels, H, W).

    Raises ValueError for a model that is no `AutoencoderKL`, and for images that it does not take.
    """
    kind = type(vae).__name__
    if kind != "AutoencoderKL":
        raise ValueError(f"the VAE is a {kind}; latents are made by an AutoencoderKL, whose posterior is a normal")
    channels, *sides = image_shape
    if channels != vae.config.in_channels:
        raise ValueError(f"the VAE takes images of {vae.config.in_channels} channels, these have {channels}")
    factor = side_factor(vae)
    if any(side % factor for side in sides):
        raise ValueError(f"the VAE divides sides by {factor}, and {sides[0]}x{sides[1]} pixels do not divide so")
    return vae.config.latent_channels, sides[0] // factor, sides[1] // factor


@torch.no_grad()
def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B, C, h, w] of each image's posterior, unscaled, float32 on the CPU."""
    first = _first(vae)
    found = vae.encode(images.to(first.device, first.dtype)).latent_dist
    return found.mean.float().cpu(), found.std.float().cpu()


@torch.no_grad()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w], as a model makes them, as images [B, channels, H, W], float32 on the CPU.

    Values are about -1 to 1, not clamped.
    """
    first = _first(vae)
    parts = LatentScale.of(vae).unscaled(latents.float()).to(first.dtype).split(DECODED_AT_ONCE)
    return torch.cat([vae.decode(part.to(first.device)).sample.float().cpu() for part in parts])


def weights_sha256(module: nn.Module) -> str:
    """Hash of a module's state: over sorted (name, dtype, shape, bytes)."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first(vae: Any) -> Tensor:
    first: Tensor = next(vae.parameters())
    return first


def _channels(values: Sequence[float], latents: Tensor) -> Tensor:
    return torch.tensor(values, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
