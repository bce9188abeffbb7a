"""A dense DiT for new classes: what every strategy that has no tailors begins with; and the matrices they adapt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kindgene.core.config import KindConfig
from kindgene.core.convert import find_targets
from kindgene.models.dit import DiT
from kindgene.pool.names import check_class_names

LABEL_TABLE = "y_embedder.embedding_table.weight"
POSITIONS = "pos_embed"
"""A fixed table, never trained."""
Targets = str | Sequence[str]
TARGETS = "paper+adaln"
"""The matrices that are adapted unless told otherwise: those that KIND decomposes here (ours)."""


@dataclass(frozen=True)
class Matrix:
    """A matrix [O, I] that a strategy adapts; a fused one holds `parts` of [O / parts, I] above each other."""

    inputs: int
    outputs: int
    parts: int = 1

    @property
    def part_outputs(self) -> int:
        return self.outputs // self.parts


def unfilled(dense: DiT, class_names: Sequence[str]) -> DiT:
    """A DiT like `dense` for these classes, freshly initialised, in its dtype and on its device.

    Raises ValueError for names that cannot be and for a DiT without a null row.
    """
    names = check_class_names(class_names)
    if dense.null_class is None:
        raise ValueError("new label rows start at the null row, and this DiT has none")
    settings = {key: value for key, value in dense.config.items() if not key.startswith("_")}
    model: DiT = DiT(**{**settings, "num_classes": len(names), "class_names": list(names)})
    like = dense.get_parameter(LABEL_TABLE)
    # By torch's own method: diffusers' override logs a warning about float32 modules that do not exist.
    nn.Module.to(model, device=like.device, dtype=like.dtype)
    return model


def for_new_classes(dense: DiT, class_names: Sequence[str]) -> DiT:
    """A DiT with the weights of `dense` and a label row for each new class, which starts at the null row (ours).

    So each new class begins as the unconditional model. `dense` is not changed; no random number is drawn. Raises
    ValueError as `unfilled` does.
    """
    with torch.random.fork_rng(devices=[]):  # its first weights are replaced
        model = unfilled(dense, class_names)
    state = dense.state_dict()
    rows = state[LABEL_TABLE][-1].repeat(model.num_classes + 1, 1)
    model.load_state_dict({**state, LABEL_TABLE: rows}, strict=True)
    return model


def train_only(model: nn.Module, *patterns: str) -> None:
    """Makes just the parameters trainable whose whole names match one of these regular expressions."""
    for name, value in model.named_parameters():
        value.requires_grad_(any(re.fullmatch(pattern, name) for pattern in patterns))


def target_layers(dense: nn.Module, targets: Targets) -> dict[str, tuple[nn.Linear, int]]:
    """The layers that a strategy adapts, by name, each with the number of matrices that it fuses.

    Raises ValueError for patterns that match nothing and for layers that are not exactly ``nn.Linear`` (a DiT of thin
    pairs has none).
    """
    kind = KindConfig(num_classes=1, learngene_rank=1, tailor_rank=1, targets=targets)
    layers = {}
    for target in find_targets(dense, kind):
        layer = dense.get_submodule(target.name)
        assert isinstance(layer, nn.Linear)
        layers[target.name] = (layer, len(target.ranks))
    return layers


def matrices(dense: nn.Module, targets: Targets) -> list[Matrix]:
    """The shapes of the same layers' matrices."""
    return [
        Matrix(layer.in_features, layer.out_features, parts) for layer, parts in target_layers(dense, targets).values()
    ]


def check_alive(layers: dict[str, Tensor], method: str) -> None:
    """Raises ValueError, naming the layer, where a matrix is all zero: nothing of it would ever be trained."""
    for name, weight in layers.items():
        if not bool(weight.any()):
            raise ValueError(f"{method} starts from pre-trained weights, and {name} is all zero: train the model first")
