"""Structure of matrices kept as components, against dense float64 computations of numpy and scipy."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene.core.components import Components, compose
from kindgene.evaluation import structure

IN, OUT = 9, 7


def components(seed, rank=3, batch=()):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*batch, rank, OUT), (*batch, rank), (*batch, rank, IN))
    return Components(*(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes))


def turned(given_, seed):
    """The same matrices in other factors: U A, A^-1 V for an invertible A."""
    generator = torch.Generator().manual_seed(seed)
    rank = given_.rank
    a = torch.eye(rank, dtype=torch.float64) + 0.3 * torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    u = a.mT @ (given_.u * given_.s.unsqueeze(-1))
    return Components(u, torch.ones_like(given_.s), torch.linalg.inv(a) @ given_.v)


def test_spectra_and_ranks_are_those_of_the_dense_matrix():
    one = components(0)
    s = np.linalg.svd(compose(one).numpy(), compute_uv=False)[:3]
    found = structure.spaces(one)
    np.testing.assert_allclose(found.s.numpy(), s, rtol=1e-10)
    p = s / s.sum()
    assert structure.effective_rank(found.s).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert structure.stable_rank(found.s).item() == pytest.approx((s**2).sum() / s[0] ** 2)
    assert found.dimension.item() == 3


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0.1, 10))
def test_the_same_matrix_in_other_factors_has_the_same_structure(seed, turn, scale):
    one, other = components(seed), components(seed + 1)
    again = turned(one, turn)
    a, b, c = structure.spaces(one), structure.spaces(again), structure.spaces(other)
    torch.testing.assert_close(b.s, a.s, rtol=1e-6, atol=1e-9)
    for first, second in ((a.column, c.column), (a.row, c.row)):
        assert 0 <= structure.overlap(first, second) <= 1 + 1e-9
    torch.testing.assert_close(
        structure.overlap(b.column, c.column), structure.overlap(a.column, c.column), rtol=1e-6, atol=1e-9
    )
    larger = Components(one.u, one.s * scale, one.v)
    torch.testing.assert_close(structure.effective_rank(structure.spaces(larger).s), structure.effective_rank(a.s))


def test_principal_angles_are_scipy_s():
    a, b = structure.spaces(components(1)), structure.spaces(components(2, rank=2))
    for mine, theirs in ((a.column, b.column), (a.row, b.row)):
        angles = scipy.linalg.subspace_angles(mine.mT.numpy(), theirs.mT.numpy())
        cosines = structure.principal_cosines(mine, theirs)
        np.testing.assert_allclose(cosines.numpy(), np.sort(np.cos(angles))[::-1], rtol=1e-9)
        assert structure.overlap(mine, theirs).item() == pytest.approx((np.cos(angles) ** 2).mean())


def test_all_pairs_are_each_pair():
    many = structure.spaces(components(3, batch=(5,)))
    found = structure.pairwise_overlap(many.column)
    for i in range(5):
        for j in range(5):
            assert found[i, j].item() == pytest.approx(structure.overlap(many.column[i], many.column[j]).item())
    assert torch.allclose(found.diagonal(), torch.ones(5, dtype=torch.float64))


def test_random_spaces_overlap_as_expected():
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randn(400, rank, 20, generator=generator, dtype=torch.float64) for rank in (3, 5))
    a, b = (torch.linalg.qr(x.mT).Q.mT for x in (a, b))
    expected = structure.random_overlap(torch.tensor(3), torch.tensor(5), 20).item()
    assert expected == 0.25
    assert structure.overlap(a, b).mean().item() == pytest.approx(expected, rel=0.05)


def test_drift_is_the_root_mean_square_cosine():
    rows = components(5, rank=4).u
    unit = (rows / rows.norm(dim=-1, keepdim=True)).numpy()
    cosines = (unit @ unit.T)[~np.eye(4, dtype=bool)]
    assert structure.drift(rows).item() == pytest.approx(np.sqrt((cosines**2).mean()))
    assert structure.drift(torch.eye(4)).item() == 0
    assert structure.drift(torch.ones(3, 6)).item() == pytest.approx(1)
    assert structure.drift(torch.ones(1, 6)).item() == 0


def test_components_of_zero_change_nothing():
    one, other = components(6), components(7, rank=2)
    padded = Components(*(torch.cat([x, torch.zeros_like(x[:2])]) for x in one))
    a, b, c = structure.spaces(one), structure.spaces(padded), structure.spaces(other)
    assert b.dimension == 3
    torch.testing.assert_close(b.s[:3], a.s)
    torch.testing.assert_close(structure.effective_rank(b.s), structure.effective_rank(a.s))
    torch.testing.assert_close(structure.overlap(b.row, c.row), structure.overlap(a.row, c.row))
    assert structure.drift(padded.u).item() == pytest.approx(structure.drift(one.u).item())


def test_energies_are_frobenius_norms():
    learngene, tailor = components(8), components(9, rank=2)
    dense, own = compose(learngene), compose(tailor)
    energies = dense.square().sum(), own.square().sum()
    assert structure.inner(learngene, tailor).item() == pytest.approx((dense * own).sum().item())
    assert structure.energy_share(*energies).item() == pytest.approx((energies[1] / sum(energies)).item())
    active = structure.active_share(*energies, structure.inner(learngene, tailor))
    assert active.item() == pytest.approx((energies[1] / (dense + own).square().sum()).item())


def test_what_is_not_defined_is_not_a_number():
    nothing = Components(torch.zeros(2, OUT), torch.zeros(2), torch.zeros(2, IN))
    space = structure.spaces(nothing)
    assert space.dimension == 0
    assert structure.effective_rank(space.s) == structure.stable_rank(space.s) == 0
    assert structure.overlap(space.column, structure.spaces(components(1)).column).isnan()
    zero = torch.zeros((), dtype=torch.float64)
    assert structure.energy_share(zero, zero).isnan()
    assert structure.active_share(torch.ones(()), torch.ones(()), -torch.ones(())).isnan()  # L + T = 0
