"""Recipes: whole pre-trainings as rows of one table, with what to expect of each. Every number in them is ours.

A recipe is a default for everything; `settled` puts what was chosen in its place and gives the settings of one run.
It lies above models and training, since it holds settings of both, and below the command line, which offers it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from kindgene.training.config import TrainConfig

Part = Literal["data", "model", "kind", "train"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images, and how they are seen.

    data: what ``--data`` names; None: to be given. image_size: pixels a side; channels: 1 or 3; None: the data's own.
    flip: every other image is mirrored. min_side: images with a shorter side are left out; None: image_size.
    check: how images are looked through: ``"headers"`` or ``"full"``. split: of a Hugging Face data set.
    superclasses: the data are ImageNet's classes, and those of this part of its superclasses are wanted.
    latents: training is on latents of a VAE.
    """

    data: str | None = None
    image_size: int | None = None
    channels: int | None = None
    flip: bool = False
    min_side: int | None = None
    check: Literal["headers", "full"] = "headers"
    split: str | None = None
    superclasses: Literal["base", "novel", "all"] | None = None
    latents: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A row. preset, model: of `DiT.from_preset`; kind: of `KindConfig`; train: of `TrainConfig`.

    expect: what was measured with it, or by others with its dense twin; or that nothing was.
    """

    name: str
    data: DataSettings
    preset: str
    model: Mapping[str, Any]
    kind: Mapping[str, Any]
    train: Mapping[str, Any]
    expect: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run, all decided but what follows from the data (classes, size, channels)."""

    recipe: str
    data: DataSettings
    preset: str
    model: dict[str, Any] = field(default_factory=dict)
    kind: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"recipe": self.recipe, "data": asdict(self.data), "preset": self.preset, "train": self.train.to_dict()}


_SMALL = {
    "batch_size": 128,
    "learning_rate": 3e-3,
    "warmup_steps": 50,
    "schedule": "cosine",
    "ema_decay": 0.995,
    "checkpoint_every": 200,
    "checkpoints_total_limit": 2,
    "sample_every": 200,
}
# As the public DiT was trained: AdamW, constant rate, no decay, no clipping, label drop 0.1.
_PUBLIC = {
    "steps": 400_000,
    "batch_size": 256,
    "learning_rate": 1e-4,
    "gradient_clip": None,
    "label_drop": 0.1,
    "ema_decay": 0.9999,
    "mixed_precision": "bf16",
    "num_workers": 8,
    "log_every": 100,
    "checkpoint_every": 10_000,
    "checkpoints_total_limit": 3,
    "sample_every": 10_000,
    "diagnose_every": 10_000,
}
# A start for data of one's own: shorter, and watched more often.
_OWN = {
    **_PUBLIC,
    "steps": 100_000,
    "batch_size": 128,
    "gradient_clip": 1.0,
    "checkpoint_every": 5_000,
    "sample_every": 5_000,
    "diagnose_every": 5_000,
}
_OWN_MODEL: dict[str, Any] = {
    "preset": "DiT-S/2",
    "model": {"learn_sigma": False, "prediction": "v", "time_frequencies": "diffusers"},
    "kind": {"learngene_rank": 84, "tailor_rank": 4, "targets": "paper+adaln"},
    "train": _OWN,
}
_V = {"learn_sigma": False, "prediction": "v"}
_PIXELS_32 = DataSettings(image_size=32, flip=True, min_side=1)
_IMAGENET = DataSettings(image_size=256, flip=True, min_side=1, superclasses="base", latents=True)

_ROWS = (
    Recipe(
        name="digits",
        data=DataSettings(data="digits"),
        preset="mini/2",
        model=_V,
        kind={"learngene_rank": 20, "tailor_rank": 6, "targets": "paper+adaln"},
        train={**_SMALL, "steps": 600},
        expect="Two CPU cores, shared: 2 to 3 minutes; mean loss of the last 50 steps 0.233 (seed 0).",
    ),
    Recipe(
        name="glyphs",
        data=DataSettings(data="glyphs", image_size=16),
        preset="mini/2",
        model=_V,
        kind={"learngene_rank": 20, "tailor_rank": 4, "targets": "paper+adaln"},
        train={**_SMALL, "steps": 6000, "checkpoint_every": 1000, "sample_every": 1000, "diagnose_every": 500},
        expect=(
            "The paper's protocol in small: 150 base superclasses. One thread of a shared AMD EPYC computes 0.87 s a "
            "step, 1.5 hours in all; what it learns was not measured at this length."
        ),
    ),
    Recipe(
        name="folder-32",
        data=_PIXELS_32,
        **_OWN_MODEL,
        expect=(
            "A start for images of one's own, 32 pixels a side, for a GPU: one thread of a shared AMD EPYC would "
            "take 54 s a step in float32 (extrapolated from batches of 4 and 12). What it learns was not measured: "
            "no GPU was at hand."
        ),
    ),
    Recipe(
        name="latents",
        data=DataSettings(flip=True, latents=True),
        **_OWN_MODEL,
        expect=(
            "A start for latents of any AutoencoderKL, 8 to 64 a side, for a GPU: at 4x32x32 one thread of a "
            "shared AMD EPYC would take 53 s a step in float32 (extrapolated from batches of 4 and 12). What it "
            "learns was not measured: no GPU was at hand."
        ),
    ),
    Recipe(
        name="imagenet-dit-b4",
        data=_IMAGENET,
        preset="DiT-B/4",
        model={"time_frequencies": "diffusers"},
        kind={"learngene_rank": 168, "tailor_rank": 4, "targets": "paper+adaln"},
        train=_PUBLIC,
        expect=(
            "By others, the dense DiT-B/4 on all 1,000 classes: FID-50K about 68.5 at 400K steps, without guidance. "
            "Of KIND on the 150 superclasses nothing was measured, for want of the data and of a GPU; its FID needs a "
            "reference of their images. One thread of a shared AMD EPYC would take 73 s a step in float32. "
            "One class takes 32 % of the dense parameters."
        ),
    ),
    Recipe(
        name="imagenet-dit-l2",
        data=_IMAGENET,
        preset="DiT-L/2",
        model={"time_frequencies": "diffusers"},
        kind={"learngene_rank": 224, "tailor_rank": 5, "targets": "paper+adaln"},
        train={**_PUBLIC, "gradient_checkpointing": True},
        expect=(
            "The paper's size. Its abstract (arXiv v1): FID lower by 6.54, sFID by 1.07 than compared methods, with "
            "45.4M trainable parameters, by a schedule that is not known. With this recipe nothing was measured, for "
            "want of the data and of a GPU."
        ),
    ),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({row.name: row for row in _ROWS})


def find_recipe(name: str) -> Recipe:
    """The row of that name; ValueError, listing the names there are, for any other."""
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}{hint}")
    return RECIPES[name]


def settled(
    recipe: Recipe, chosen: Mapping[Part, Mapping[str, Any]] | None = None, preset: str | None = None
) -> Settings:
    """The recipe's settings, with those of `chosen` in their place.

    A warm-up that nobody chose is at most a third of the steps; diagnostics that nobody chose come with the next line
    of the log. Raises ValueError for values that make no sense.
    """
    told: Mapping[Part, Mapping[str, Any]] = {"data": {}, "model": {}, "kind": {}, "train": {}, **(chosen or {})}
    train = {**recipe.train, **told["train"]}
    if "warmup_steps" in train and "warmup_steps" not in told["train"]:
        train["warmup_steps"] = min(train["warmup_steps"], train["steps"] // 3)
    if "diagnose_every" in train and "diagnose_every" not in told["train"]:
        lines = max(1, train.get("log_every", TrainConfig.log_every))
        train["diagnose_every"] = math.ceil(train["diagnose_every"] / lines) * lines
    return Settings(
        recipe=recipe.name,
        data=replace(recipe.data, **told["data"]),
        preset=preset or recipe.preset,
        model={**recipe.model, **told["model"]},
        kind={**recipe.kind, **told["kind"]},
        train=TrainConfig(**train),
    )


def changed(settings: Settings) -> list[str]:
    """What was chosen otherwise than the recipe has it, by name; not the data, or their size, that it leaves open."""
    recipe = find_recipe(settings.recipe)
    found = ["preset"] if settings.preset != recipe.preset else []
    pairs = zip(_parts(settings), _parts(settled(recipe)), strict=True)
    found += [name for told, own in pairs for name, value in told.items() if value != own.get(name)]
    left_open = [name for name in ("data", "image_size") if getattr(recipe.data, name) is None]
    return [name for name in found if name not in left_open]


def _parts(settings: Settings) -> tuple[Mapping[str, Any], ...]:
    return asdict(settings.data), settings.model, settings.kind, settings.train.to_dict()
