"""How reports speak of a study's data and eyes, from the settings that its results keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def of_measuring(found: Mapping[str, Any]) -> str:
    """What figures were measured with: sampler, weights, extractor and its hash, judge."""
    parts = []
    if "sampler" in found:
        each = found["samples_per_class"]
        counts = list(each.values()) if isinstance(each, Mapping) else [each]
        guidance = " and ".join(map(str, found["guidances"]))
        parts.append(
            f"Samples: {found['sampler'].upper()}, {found['sampling_steps']} steps, guidance {guidance}, "
            f"{_span(counts)} a class, noise of the study's seed, {found['weights']} weights."
        )
    if "loss_draws" in found:
        weights = "" if "sampler" in found else f" with {found['weights']} weights"
        parts.append(f"Losses: every image at {found['loss_draws']} timesteps{weights}.")
    if extractor := found.get("extractor"):
        parts.append(f"Extractor: {extractor['name']}, weights {extractor['sha256'][:12]}.")
    judges = found.get("judge") or {}
    for task, judge in {"": judges}.items() if "kind" in judges else judges.items():
        if judge is not None:
            parts.append(f"Judge{f' of {task}' if task else ''}: {_judge(judge)}.")
    return " ".join(parts)


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"


def _judge(judge: Mapping[str, Any]) -> str:
    named = f"{judge['kind']} {judge['name']}" if "name" in judge else str(judge["kind"])
    if "accuracy" not in judge:
        return named
    return f"{named}, {share(judge['accuracy'])} of {judge['held_out']:,} held-out images right"


def share(figure: float) -> str:
    """``93.1 %``."""
    return f"{100 * figure:.1f} %"
