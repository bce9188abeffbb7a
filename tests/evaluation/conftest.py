"""An extractor whose features are known: random projections of pixels, so tests need no network."""

import pytest
import torch

from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation.features import Extractor, Features


class ToyExtractor(Extractor):
    """Six features, four spatial ones and three logits of grey 4x4 images."""

    name, preprocessing, dimension, sha256 = "toy", "none", 6, "f" * 64
    has_spatial = has_logits = True

    def __init__(self):
        self.weights = torch.randn(16, 13, generator=torch.Generator().manual_seed(1)).double()

    def __call__(self, pixels):
        found = ((pixels.flatten(1).double() / 255) @ self.weights).float()  # whatever the batch, the same bits
        return Features(found[:, :6], found[:, 6:10], found[:, 10:])


@pytest.fixture
def toy():
    return ToyExtractor()


@pytest.fixture
def grey():
    """Thirty images of three classes."""
    images = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ArrayDataset(images, torch.arange(30) % 3, ("a", "b", "c"))
