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


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.permutations(range(4)), st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_turning_the_whole_space_changes_neither_overlap_nor_drift(seed, order, lengths):
    """Nor do the order, the lengths and the signs of the components change the drift."""
    one, other = components(seed, rank=4), components(seed + 1, rank=2)
    q = torch.linalg.qr(torch.randn(OUT, OUT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    a, b = structure.spaces(one), structure.spaces(other)
    c, d = (structure.spaces(Components(x.u @ q, x.s, x.v)) for x in (one, other))
    torch.testing.assert_close(structure.overlap(c.column, d.column), structure.overlap(a.column, b.column))
    torch.testing.assert_close(structure.overlap(d.column, c.column), structure.overlap(c.column, d.column))
    torch.testing.assert_close(c.s, a.s)
    changed = (
        (one.u @ q)[order]
        * torch.tensor(lengths, dtype=torch.float64).unsqueeze(-1)
        * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    )
    torch.testing.assert_close(structure.drift(changed), structure.drift(one.u))


def dense_bases(batch, ranks):
    """Orthonormal bases [D, K] of the column space of each dense matrix, by numpy."""
    return [np.linalg.svd(compose(one).numpy())[0][:, :rank] for one, rank in zip(batch, ranks, strict=True)]


@pytest.mark.parametrize("count", [5, 2 * structure._ROWS + 3])
def test_angles_and_overlaps_of_all_pairs_are_scipys(count):
    """Of spaces of several dimensions, padded with components of zero; more of them than are multiplied at once."""
    ranks = [1 + index % 3 for index in range(count)]
    many = components(1, batch=(count,))
    batch = [Components(*(factor[index] for factor in many)) for index in range(count)]
    for one, rank in zip(batch, ranks, strict=True):
        one.s[rank:] = 0.0
    bases, column = dense_bases(batch, ranks), structure.spaces(many).column
    cosines, overlaps = structure.pairwise_cosines(column[:5]), structure.pairwise_overlap(column)
    for i in range(count):
        for j in (0, 1, 2, count - 1):
            expected = np.sort(np.cos(scipy.linalg.subspace_angles(bases[i], bases[j])))[::-1]
            assert overlaps[i, j].item() == pytest.approx((expected**2).mean())
            assert structure.overlap(column[i], column[j]).item() == pytest.approx((expected**2).mean())
            if max(i, j) < len(cosines):
                np.testing.assert_allclose(cosines[i, j, : len(expected)].numpy(), expected, rtol=1e-9)
                np.testing.assert_allclose(cosines[i, j, len(expected) :].numpy(), 0.0, atol=1e-12)


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


def test_the_share_of_energy():
    shares = structure.energy_share(torch.tensor(9.0), torch.tensor([1.0, 0.0, 9.0]))
    assert shares.tolist() == pytest.approx([0.1, 0.0, 0.5])


def test_what_is_not_defined_is_not_a_number():
    nothing = Components(torch.zeros(2, OUT), torch.zeros(2), torch.zeros(2, IN))
    space = structure.spaces(nothing)
    assert space.dimension == 0
    assert structure.effective_rank(space.s) == 0
    assert structure.overlap(space.column, structure.spaces(components(1)).column).isnan()
    zero = torch.zeros((), dtype=torch.float64)
    assert structure.energy_share(zero, zero).isnan()
