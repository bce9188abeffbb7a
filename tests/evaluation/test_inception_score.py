"""The inception score against its formula, as ADM computes it from all probabilities at once."""

import numpy as np
import pytest
import torch

from kindgene.evaluation.inception_score import InceptionScore


def logits(count, classes, seed=0):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 3


def by_hand(x, splits):
    """exp of the mean KL to the marginal, a split; their mean. float64 numpy."""
    shares = np.exp(x.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    scores = []
    for split in range(splits):
        part = shares[split::splits]
        kl = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
        scores.append(np.exp(kl.mean()))
    return np.mean(scores)


@pytest.mark.parametrize(("count", "split", "splits"), [(40, 5000, 1), (40, 10, 4), (41, 10, 5)])
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_it_is_the_formula_whatever_the_batch(count, split, splits, batch):
    x = logits(count, 5)
    score = InceptionScore(count, split)
    assert score.splits == splits
    for numbers in torch.arange(count).flip(0).split(batch):
        score.update(x[numbers], numbers)
    assert score.value() == pytest.approx(by_hand(x, splits), rel=1e-12)


def test_its_bounds():
    same, apart = InceptionScore(10), InceptionScore(10)
    same.update(logits(1, 5).expand(10, 5), torch.arange(10))
    apart.update(torch.eye(5).repeat(2, 1) * 1e4, torch.arange(10))  # each sure of another class
    assert same.value() == pytest.approx(1.0, abs=1e-12)
    assert apart.value() == pytest.approx(5.0, abs=1e-12)


def test_processes_merge():
    x = logits(30, 4)
    parts = [InceptionScore(30, 10) for _ in range(3)]
    for number, part in enumerate(parts[:2]):  # the third has seen nothing
        part.update(x[number::2], torch.arange(number, 30, 2))
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    assert parts[2].value() == pytest.approx(by_hand(x, 3), rel=1e-12)


def test_splits_mix_what_comes_class_by_class():
    """Two classes, one after the other: split as they come, each half would score 1."""
    x = torch.eye(2).repeat_interleave(10, 0) * 1e4
    score = InceptionScore(20, 10)
    score.update(x, torch.arange(20))
    assert score.value() == pytest.approx(2.0)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        InceptionScore(0)
    with pytest.raises(ValueError, match="at least one image"):
        InceptionScore(3).value()
    with pytest.raises(ValueError, match=r"\(2, 3\) logits for 1 images"):
        InceptionScore(3).update(logits(2, 3), torch.arange(1))
    with pytest.raises(ValueError, match="do not merge"):
        InceptionScore(3, 1).merge(InceptionScore(3, 2))
