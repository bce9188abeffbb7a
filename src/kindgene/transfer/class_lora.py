"""Per-class LoRA on the dense twin behind KIND's own gate: is it KIND, or just capacity for each class?

Everything that KIND has at transfer is here but the learngene: class gate, tailors, label rows, null class. The shared
part of every target is the dense pre-trained matrix, as it was, frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kindgene.core.components import fill_random
from kindgene.core.config import KindConfig, Rank
from kindgene.core.convert import make_decomposable
from kindgene.models.dit import DiT
from kindgene.transfer.new_classes import TARGETS, Targets, for_new_classes, target_layers
from kindgene.transfer.transfer import Transfer, drawing


def class_lora(
    dense: DiT,
    class_names: Sequence[str],
    rank: Rank,
    *,
    targets: Targets = TARGETS,
    generator: torch.Generator | None = None,
) -> Transfer:
    """The dense model, frozen, with a zero-initialised tailor of `rank` and a label row for each class, trainable.

    A tailor has u, s and v as KIND's; u starts at zero, so every class starts as the dense model with the null label.
    Nothing is trained by samples without a label, so label drop is 0. Raises ValueError for ranks that cannot be.
    """
    module = for_new_classes(dense, class_names)
    weights = {name: layer.weight.detach() for name, (layer, _) in target_layers(module, targets).items()}
    kind = KindConfig(
        num_classes=module.num_classes, learngene_rank=1, tailor_rank=rank, targets=targets, init="random"
    )
    with drawing(generator):
        model = make_decomposable(module, kind)  # its components, the learngene's one and the tailors', are replaced
        table = model.bank.tailors
        with torch.no_grad():
            for name, layer in model.layers.items():
                layer.keep_dense(range(layer.parts))
                assert layer.weight is not None
                layer.weight.copy_(weights[name])
                for tailor in layer.tailor(table.views(table.rows)):
                    fill_random(tailor, 0.0, tailor.rank)
    model.freeze_learngene()
    return Transfer("class_lora", model, label_drop=0.0, rank=rank if isinstance(rank, int) else None)
