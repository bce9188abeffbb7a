"""What the novel and the shift study compare, at which learning rates and sizes: rows, grids, a row a scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kindgene.data.shifts import SHIFTS
from kindgene.studies.cells import settings_of
from kindgene.studies.imagenet_source import FAR
from kindgene.transfer.strategies import STRATEGIES

KIND = "kind"
EQUAL = "equal"
"""Ends the name of a strategy at the rank that trains as many numbers as KIND: ``lora-equal``."""
RATED = ("lora", "dora", "pissa", "loha", "oft", "class_lora")
"""Strategies that run at KIND's number of trained numbers too."""
RATES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "kind": (3e-3, 1e-2, 3e-2, 1e-1),
        "kind_null_tailor": (3e-3, 1e-2, 3e-2, 1e-1),
        "class_lora": (3e-3, 1e-2, 3e-2, 1e-1),
        "linear_probe": (3e-3, 1e-2, 3e-2),
        "lora": (3e-3, 1e-2, 3e-2, 1e-1),
        "dora": (3e-3, 1e-2, 3e-2),
        "pissa": (1e-3, 3e-3, 1e-2),
        "loha": (3e-3, 1e-2, 3e-2),
        "oft": (1e-3, 3e-3, 1e-2, 3e-2),
        "svdiff": (1e-2, 4e-2, 1.6e-1),
        "kind_everything": (3e-4, 1e-3, 3e-3, 1e-2),
        "full_finetune": (1e-3, 3e-3, 1e-2),
        "scratch": (1e-3, 3e-3, 1e-2, 3e-2),
        "heur_lg": (1e-3, 3e-3, 1e-2, 3e-2),
        "auto_lg": (1e-3, 3e-3, 1e-2, 3e-2),
    }
)
"""The learning rates of each strategy (ours): few numbers take larger ones. A grid of three whose best stood at its
edge, at mini scale, was given a fourth rate beyond it."""


SHIFTED = (
    "kind",
    "kind_null_tailor",
    "kind_everything",
    "full_finetune",
    "scratch",
    "lora-equal",
    "class_lora-equal",
    "heur_lg",
    "auto_lg",
)
"""Rows of the shift study: what is carried over, rather than every adapter."""


def _all_rows() -> tuple[str, ...]:
    return (*STRATEGIES, *(f"{name}-{EQUAL}" for name in RATED))


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """Sizes of both studies; models and images are those of the pretrain study.

    `tasks` of `task_classes` novel classes each; `shifts`: far sets, of `shift_classes`. `milestones`: shares of the
    steps after which validation loss is measured; the last is 1. Not the `whole_grid` is its second rate alone. The
    cost of a step is a median of so many `cost_rounds`. A row is a strategy, or ``NAME-equal``.
    """

    tasks: int
    task_classes: int
    shifts: tuple[str, ...] = SHIFTS
    shift_classes: int
    steps: int
    batch_size: int
    ema_decay: float = 0.99
    milestones: tuple[float, ...] = (0.25, 0.5, 1.0)
    whole_grid: bool = True
    cost_rounds: int = 15
    novel_rows: tuple[str, ...] = _all_rows()
    shift_rows: tuple[str, ...] = SHIFTED

    @property
    def rate_factor(self) -> float:
        """What every rate of `RATES` is multiplied by."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class LargeTransferSettings(TransferSettings):
    """Of models of a published size, whose rates are lower."""

    rate_factor: float = 0.1


_IMAGENET = LargeTransferSettings(
    tasks=3, task_classes=20, shifts=FAR, shift_classes=10, steps=10_000, batch_size=256, ema_decay=0.999
)

SCALES: Mapping[str, TransferSettings] = MappingProxyType(
    {
        "tiny": TransferSettings(
            tasks=1,
            task_classes=2,
            shifts=("stars",),
            shift_classes=2,
            steps=2,
            batch_size=4,
            milestones=(0.5, 1.0),
            whole_grid=False,
            cost_rounds=1,
        ),
        "mini": TransferSettings(
            tasks=1,
            task_classes=8,
            shift_classes=4,
            steps=128,
            batch_size=64,
        ),
        "full": TransferSettings(tasks=1, task_classes=16, shift_classes=6, steps=200, batch_size=256),
        "imagenet": _IMAGENET,
        "imagenet-l4": _IMAGENET,
    }
)


def transfer_settings(scale: str) -> TransferSettings:
    """The settings of a scale. Raises ValueError naming the scales there are."""
    return settings_of("novel or shift", SCALES, scale)
