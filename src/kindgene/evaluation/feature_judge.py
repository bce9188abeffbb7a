"""A judge of any classes on any extractor's features: linear discriminant analysis, fitted in one pass.

All classes are taken to have one covariance, so the class of an image is that of the nearest mean in the whitened
features (Fisher 1936); the covariance is shrunk towards a multiple of the identity, since features may be more than
images. How well it does is measured on images that it has not seen, by whoever uses it.

Shapes: N images, B batch, D features, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kindgene.data.dataset import Dataset
from kindgene.evaluation.features import Extractor, to_pixels

SHRINKAGE = 0.1
"""The share of the covariance that is a multiple of the identity (ours)."""
_AT_ONCE = 64


class FeatureJudge:
    """K classes told apart by ``features W + b``: weights float64 [D, K], bias [K]; `fit_judge` makes it."""

    def __init__(self, extractor: Extractor, class_names: tuple[str, ...], weights: Tensor, bias: Tensor) -> None:
        self.extractor, self.class_names, self.weights, self.bias = extractor, class_names, weights, bias

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "linear discriminant analysis on features", "extractor": self.extractor.to_dict()}

    def predict(self, images: Tensor) -> Tensor:
        """The label of each image, float in [-1, 1] or bytes [N, C, H, W]: long [N]."""
        parts = [self.extractor(part).pooled.double().cpu() for part in to_pixels(images).split(_AT_ONCE)]
        return (torch.cat(parts) @ self.weights + self.bias).argmax(1)


def fit_judge(extractor: Extractor, dataset: Dataset, per_class: int) -> FeatureJudge:
    """A judge of the classes of `dataset`, from at most `per_class` images of each, the first ones.

    Raises ValueError for a data set of fewer than two classes.
    """
    names, labels = dataset.class_names, dataset.labels
    if len(names) < 2:
        raise ValueError(f"only one class, {names[0]!r}; a judge needs at least two to tell apart")
    chosen = torch.cat([(labels == label).nonzero().flatten()[:per_class] for label in range(len(names))])
    features = [extractor(to_pixels(dataset.batch(part))).pooled.double().cpu() for part in chosen.split(_AT_ONCE)]
    x_ND, y_N = torch.cat(features), labels[chosen]
    count_K = torch.bincount(y_N, minlength=len(names)).double()
    mean_KD = torch.zeros(len(names), x_ND.shape[1], dtype=torch.float64).index_add_(0, y_N, x_ND) / count_K[:, None]
    about_ND = x_ND - mean_KD[y_N]
    covariance = about_ND.T @ about_ND / len(x_ND)
    level = covariance.trace() / len(covariance) + torch.finfo(torch.float32).eps
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * torch.eye(len(covariance), dtype=torch.float64)
    weights_DK = torch.linalg.solve(covariance, mean_KD.T)
    return FeatureJudge(extractor, names, weights_DK, -0.5 * (mean_KD.T * weights_DK).sum(0))
