"""A judge on any features: scikit-learn's discriminant analysis says the same."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from kindgene.data.arrays import ArrayDataset
from kindgene.evaluation import feature_judge
from kindgene.evaluation.feature_judge import fit_judge
from kindgene.evaluation.features import to_pixels
from kindgene.evaluation.pixels import PixelExtractor


@pytest.fixture
def data():
    """Three classes of noise about a colour each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(100)
    colours = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.3]])
    noise = 0.8 * torch.randn(300, 3, 16, 16, generator=generator)
    return ArrayDataset((colours[labels][:, :, None, None] + noise).clamp(-1, 1), labels, ("a", "b", "c"))


def test_it_is_linear_discriminant_analysis(data, monkeypatch):
    monkeypatch.setattr(feature_judge, "SHRINKAGE", 1e-6)
    extractor = PixelExtractor()
    judge = fit_judge(extractor, data, 80)
    chosen = torch.cat([(data.labels == label).nonzero().flatten()[:80] for label in range(3)])
    features = extractor(to_pixels(data.images)).pooled.double().numpy()
    other = LinearDiscriminantAnalysis(solver="lsqr").fit(features[chosen], data.labels[chosen].numpy())
    assert np.mean(judge.predict(data.images).numpy() == other.predict(features)) > 0.99


def test_it_recognises_what_it_has_not_seen(data):
    judge = fit_judge(PixelExtractor(), data, 50)
    unseen = torch.arange(150, 300)
    assert float((judge.predict(data.images[unseen]) == data.labels[unseen]).double().mean()) > 0.9
    assert torch.equal(judge.predict(to_pixels(data.images)), judge.predict(data.images))


def test_one_class_cannot_be_told_apart(data):
    with pytest.raises(ValueError, match="only one class, 'b'"):
        fit_judge(PixelExtractor(), data.subset(["b"]), 10)
