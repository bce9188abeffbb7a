"""A small pre-trained model, dense and as a pool, the classes to carry it to, and training by hand."""

import copy

import pytest
import torch

from kindgene import DiT, KindConfig, load_digits, make_decomposable
from kindgene.transfer.strategies import STRATEGIES, Start, make_transfer

NEW = ("6", "7", "8")


def pre_trained(**settings):
    """A DiT whose every weight counts: none is left at zero."""
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "depth": 2, "class_names": ["0", "1"], **settings}
    model = DiT.from_preset("tiny/2", num_classes=2, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="session")
def make_dense():
    return pre_trained


@pytest.fixture(scope="session")
def batch():
    """Images, timesteps and labels of the new classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6) * 150, torch.arange(6) % 3


@pytest.fixture(scope="session")
def start(batch):
    """Never changed by a test, nor by what it tests."""
    dense = pre_trained()
    kind = KindConfig(num_classes=2, learngene_rank=4, tailor_rank=2, targets="paper+adaln", init="svd")
    pool = make_decomposable(copy.deepcopy(dense), kind).decompose()
    return Start(dense=dense, pool=pool, loss=lambda model: model(*batch).square().mean())


@pytest.fixture(scope="session")
def digits():
    return load_digits().subset(NEW)


@pytest.fixture
def make(start):
    """A transfer by name, at rank 3 (OFT: blocks of 4) where there is a rank."""

    def transfer(name, rank=None, names=NEW, seed=0):
        if rank is None and STRATEGIES[name].ranked is not None:
            rank = 4 if name == "oft" else 3
        return make_transfer(name, names, start, rank, generator=torch.Generator().manual_seed(seed))

    return transfer


@pytest.fixture(scope="session")
def state_of():
    """A copy of all that a model holds."""
    return lambda model: {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def changed():
    """Names of what is not the same, bit for bit, as it was; NaN is the same as NaN."""

    def names(model, before):
        after = model.state_dict()
        assert after.keys() == before.keys()
        return {name for name, value in after.items() if not torch.equal(value, before[name])}

    return names


@pytest.fixture(scope="session")
def fit(batch):
    """Adam by hand on one batch, everything that is trainable as an ordinary parameter; the losses."""

    def steps(model, count=12, labels=None):
        x, t, y = batch
        y = y if labels is None else labels
        target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        adam = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=2e-2)
        losses = []
        for _ in range(count):
            loss = (model(x, t, y) - target).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(float(loss.detach()))
        return losses

    return steps
