"""Operations and bytes against counts by hand, and the least time that they take."""

import pytest
import torch
import torch.nn.functional as F

from kindgene.benchmarks.models import TINY, batch_of
from kindgene.benchmarks.roofline import Rates, Work, count_work, measure_rates, rooflines
from kindgene.benchmarks.training_step import Step, build

A, B, C = torch.ones(3, 4), torch.ones(4, 5), torch.ones(3, 5)
ROWS = torch.ones(100, 6)


@pytest.mark.parametrize(
    ("action", "pieces"),
    [
        (lambda: A @ B, [(2 * 60, 4 * (12 + 20 + 15))]),
        (lambda: torch.mm(A, B, out=C.clone()), [(0, 4 * 30), (2 * 60, 4 * (12 + 20 + 15))]),
        (lambda: C.clone().addmm_(A, B), [(0, 4 * 30), (2 * 60, 4 * (12 + 20 + 15 + 15))]),
        (lambda: A + A[:1], [(0, 4 * (12 + 4 + 12))]),
        (lambda: A.expand(7, 3, 4).sum(), [(0, 4 * (12 + 1))]),  # what is repeated lies there once
        (lambda: A.mT.flatten()[1:].unsqueeze(0), [(0, 4 * (12 + 12))]),  # of these only flatten copies
        (lambda: torch.empty(5).copy_(ROWS[:5, 0]), [(0, 4 * 10)]),
        (lambda: ROWS.index_select(0, torch.tensor([1, 2])), [(0, 2 * 4 * 12)]),
    ],
)
def test_counts_by_hand(action, pieces):
    assert [piece for piece in count_work(action).pieces if piece != (0, 0)] == pieces


@pytest.mark.parametrize("gradients", [False, True])
def test_attention_is_four_products_and_five_more_backwards(gradients):
    q, k, v = (torch.randn(2, 3, 16, 8, requires_grad=gradients) for _ in range(3))

    def action():
        out = F.scaled_dot_product_attention(q, k, v)
        if gradients:
            out.sum().backward()

    product = 2 * 2 * 3 * 16 * 16 * 8
    assert sum(ops for ops, _ in count_work(action).pieces) == product * (2 + 5 * gradients)


def test_a_step_s_operations():
    """Of a linear layer three products: forward, and two gradients. A decomposable step has fewer than all in full."""
    layer = torch.nn.Linear(8, 6)
    x = torch.randn(5, 8, requires_grad=True)
    assert sum(ops for ops, _ in count_work(lambda: layer(x).sum().backward()).pieces) == 3 * 2 * 5 * 8 * 6
    ways = ("decomposable", "dense", "masked full rank")
    batch = batch_of(TINY, 4)
    counted = {way: count_work(Step(build(way, TINY, 4), batch).gradients) for way in ways}
    ours, dense, masked = (sum(ops for ops, _ in counted[way].pieces) for way in ways)
    assert 0 < ours < dense < masked


def test_the_roofline_takes_the_longer_of_the_two():
    rates = Rates(products=10.0, thin_products=5.0, copy=2.0, sha256=1.0)
    work = Work(((100, 4), (0, 6), (10, 10)))
    assert work.to_dict(rates) == {
        "operations": 110,
        "bytes": 20,
        "arithmetic_seconds": 11.0,
        "memory_seconds": 10.0,
        "seconds": 10 + 3 + 5,
    }
    assert rooflines({"a": lambda: A @ B}, rates)["a"]["operations"] == 120


def test_rates_are_measured():
    rates = measure_rates(TINY, 1, 1 << 16)
    assert min(rates.products, rates.thin_products, rates.copy, rates.sha256) > 1e6
