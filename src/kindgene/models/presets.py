"""The configurations of DiT: its sizes, a row each with its parameter count, and what fits together.

The published rows are those of Peebles and Xie (arXiv 2212.09748, Table 1) for ImageNet latents: 32x32x4,
1000 classes, a null row, learned sigma. The others are ours: `tiny` for tests, `mini` for small images on a
CPU.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {"input_size": 32, "in_channels": 4, "num_classes": 1000, "learn_sigma": True, "time_frequencies": "dit"}
)
OURS: Mapping[str, Any] = MappingProxyType(
    {
        "input_size": 8,
        "in_channels": 1,
        "num_classes": 10,
        "learn_sigma": False,
        "time_frequencies": "diffusers",
    }
)


@dataclass(frozen=True)
class Preset:
    """One size; `parameters` counts the fixed position table too, as the public checkpoints hold it."""

    name: str
    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    parameters: int
    data: Mapping[str, Any]

    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this DiT."""
        sizes = {"hidden_size": self.hidden_size, "depth": self.depth, "num_heads": self.num_heads}
        return {**sizes, "patch_size": self.patch_size, **self.data}


_ROWS = (
    #       name      width  depth heads patch  parameters
    Preset("DiT-S/2", 384, 12, 6, 2, 32_963_360, PUBLISHED),
    Preset("DiT-S/4", 384, 12, 6, 4, 32_945_024, PUBLISHED),
    Preset("DiT-S/8", 384, 12, 6, 8, 33_148_160, PUBLISHED),
    Preset("DiT-B/2", 768, 12, 12, 2, 130_512_416, PUBLISHED),
    Preset("DiT-B/4", 768, 12, 12, 4, 130_475_648, PUBLISHED),
    Preset("DiT-B/8", 768, 12, 12, 8, 130_881_536, PUBLISHED),
    Preset("DiT-L/2", 1024, 24, 16, 2, 458_102_816, PUBLISHED),
    Preset("DiT-L/4", 1024, 24, 16, 4, 458_053_760, PUBLISHED),
    Preset("DiT-L/8", 1024, 24, 16, 8, 458_594_816, PUBLISHED),
    Preset("DiT-XL/2", 1152, 28, 16, 2, 675_129_632, PUBLISHED),
    Preset("DiT-XL/4", 1152, 28, 16, 4, 675_074_432, PUBLISHED),
    Preset("DiT-XL/8", 1152, 28, 16, 8, 675_683_072, PUBLISHED),
    Preset("tiny/2", 32, 2, 2, 2, 50_372, OURS),
    Preset("tiny/4", 32, 2, 2, 4, 50_768, OURS),
    Preset("mini/2", 96, 4, 4, 2, 725_380, OURS),
    Preset("mini/4", 96, 4, 4, 4, 726_544, OURS),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({row.name: row for row in _ROWS})


def find_preset(name: str) -> Preset:
    """The row of that name; ValueError, listing the names there are, for any other."""
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}{hint}")
    return PRESETS[name]


WHOLE = ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "num_classes")
CHOICES: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "time_frequencies": ("dit", "diffusers"),
        "schedule": ("linear", "cosine"),
        "prediction": ("epsilon", "v"),
        "learn_sigma": (True, False),
        "null_row": (True, False),
    }
)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise one ValueError that names everything wrong with a configuration of DiT."""
    wrong = [
        f"{key} must be a whole number of at least 1, found {config[key]!r}" for key in WHOLE if not _whole(config[key])
    ]
    for key, choices in CHOICES.items():
        if config[key] not in choices:
            wrong.append(f"{key} must be one of {', '.join(map(str, choices))}, found {config[key]!r}")
    # What fits together can only be asked of values that make sense one by one.
    wrong = wrong or _misfits(config) + _bad_names(config["class_names"], config["num_classes"])
    if wrong:
        raise ValueError(f"this DiT cannot be built: {'; '.join(wrong)}")


def _whole(value: object) -> bool:
    return type(value) is int and value >= 1


def _misfits(config: Mapping[str, Any]) -> list[str]:
    width, heads, size, patch = (config[key] for key in ("hidden_size", "num_heads", "input_size", "patch_size"))
    ratio = config["mlp_ratio"]
    wrong = []
    if width % heads:
        wrong.append(f"num_heads {heads} does not divide hidden_size {width}")
    if width % 4:
        wrong.append(f"hidden_size {width} is not a multiple of 4 (sine and cosine of row and column)")
    if size % patch:
        wrong.append(f"patch_size {patch} does not divide input_size {size}")
    if not isinstance(ratio, int | float) or not math.isfinite(ratio) or width * ratio < 1:
        wrong.append(f"mlp_ratio must be a number that leaves the MLP some width, found {ratio!r}")
    eps = config["mlp_norm_eps"]
    if not isinstance(eps, float) or not 0 < eps < 1:
        wrong.append(f"mlp_norm_eps must be a small number above 0, found {eps!r}")
    return wrong


def _bad_names(names: Any, num_classes: int) -> list[str]:
    if names is None:
        return []
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        return [f"class_names must be a list of strings, found {names!r}"]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    wrong = [f"class_names repeats {', '.join(map(repr, repeated))}"] if repeated else []
    if len(names) != num_classes:
        wrong.append(f"class_names has {len(names)} names for num_classes {num_classes}")
    return wrong
