"""The demo's settings: a row a scale. What they come to is in README.md, under "What was measured"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

BASE = ("0", "1", "2", "3", "4", "5")
NOVEL = ("6", "7", "8", "9")
TRIO = ("0", "1", "2")
SINGLE = "4"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Sizes and schedules. Each of the four trainings has its own learning rate, the best of a small grid on seed 0."""

    preset: str
    learngene_rank: int
    tailor_rank: int
    targets: str = "paper+adaln"
    prediction: str = "v"
    schedule: str = "linear"
    batch_size: int
    pretrain_steps: int
    transfer_steps: int
    learning_rate: float = 3e-3
    dense_learning_rate: float = 4e-3
    tailor_learning_rate: float = 6e-3
    finetune_learning_rate: float = 4e-3
    ema_decay: float = 0.995
    checkpoint_every: int
    samples_per_class: int
    single_class_samples: int
    sampling_steps: int
    pareto_points: int
    scheduler: str = "ddim"
    guidance: float = 1.5
    clip: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


SCALES: Mapping[str, DemoSettings] = MappingProxyType(
    {
        "tiny": DemoSettings(
            preset="tiny/2",
            learngene_rank=20,
            tailor_rank=6,
            batch_size=8,
            pretrain_steps=4,
            transfer_steps=3,
            checkpoint_every=2,
            samples_per_class=2,
            single_class_samples=4,
            sampling_steps=3,
            pareto_points=2,
        ),
        "mini": DemoSettings(
            preset="mini/2",
            learngene_rank=20,
            tailor_rank=6,
            batch_size=128,
            pretrain_steps=600,
            transfer_steps=150,
            checkpoint_every=200,
            samples_per_class=50,
            single_class_samples=100,
            sampling_steps=30,
            pareto_points=9,
        ),
    }
)


def demo_settings(scale: str) -> DemoSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    if scale not in SCALES:
        raise ValueError(f"no demo scale {scale!r}; there is {', '.join(SCALES)}")
    return SCALES[scale]
