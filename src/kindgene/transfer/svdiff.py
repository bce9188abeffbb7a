"""SVDiff (Han et al., arXiv 2303.11305): train only shifts of the singular values of the weight matrices.

W = U diag(s) V^T is decomposed once; what is trained is delta in W' = U diag(ReLU(s + delta)) V^T, which starts at 0.
Ours: the matrices are those that KIND decomposes (a fused qkv is one matrix), label rows are new and trained too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kindgene.models.dit import DiT
from kindgene.transfer.dense import LABEL_DROP
from kindgene.transfer.new_classes import (
    LABEL_TABLE,
    TARGETS,
    Targets,
    check_alive,
    for_new_classes,
    target_layers,
    train_only,
)
from kindgene.transfer.transfer import Transfer


class SpectralLinear(nn.Module):
    """A linear layer kept as its SVD, R = min(I, O): frozen u [O, R], s [R], v [R, I], bias [O], trained shift [R]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        u, s, v = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
        dtype = linear.weight.dtype
        self.u, self.s, self.v = (nn.Parameter(value.to(dtype).contiguous()) for value in (u, s, v))
        self.bias = linear.bias
        self.shift = nn.Parameter(torch.zeros_like(self.s))

    @property
    def weight(self) -> Tensor:
        """U diag(ReLU(s + delta)) V^T [O, I]."""
        return (self.u * F.relu(self.s + self.shift)) @ self.v

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The ordinary layer that it amounts to."""
        weight = self.weight
        size_out, size_in = weight.shape
        linear = nn.Linear(size_in, size_out, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(weight), self.bias
        return linear.train(self.training)


def svdiff(
    dense: DiT, class_names: Sequence[str], label_drop: float = LABEL_DROP, *, targets: Targets = TARGETS
) -> Transfer:
    """The dense model with trainable singular value shifts and a trainable label table, the rest frozen.

    Who receives it decomposes the same weights again, so only shifts and label rows travel (as in the paper). The
    authors train with a rate up to a thousand times that of full fine-tuning. Raises ValueError for a matrix of zeros.
    """
    model = for_new_classes(dense, class_names)
    layers = {name: layer for name, (layer, _) in target_layers(model, targets).items()}
    check_alive({name: layer.weight for name, layer in layers.items()}, "svdiff")
    for name, layer in layers.items():
        model.set_submodule(name, SpectralLinear(layer))
    train_only(model, LABEL_TABLE, r".*\.shift")
    return Transfer("svdiff", model, label_drop, merge=_merge)


def _merge(model: nn.Module) -> nn.Module:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, SpectralLinear):
            model.set_submodule(name, layer.merged())
    return model
