"""Rank-1 components: composing, cutting, padding, joining, the canonical form and the first random values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kindgene.core.components import (
    Components,
    canonical,
    compose,
    concatenate,
    fill_random,
    from_matrix,
    pad,
    truncate,
)

few = settings(max_examples=25)


@st.composite
def components(draw, full=True):
    """Up to four components of an up to 6x6 matrix, some of them zero or alike, perhaps one set a class."""
    features = st.integers(1, 6)
    out, into = draw(features), draw(features)
    rank = draw(st.integers(1, min(4, out, into) if full else 4))
    batch = draw(st.sampled_from([(), (2,), (2, 3)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    u, s, v = (
        torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
        for shape in ((rank, out), (rank,), (rank, into))
    )
    if draw(st.booleans()):
        s[..., draw(st.integers(0, rank - 1))] = 0
    if draw(st.booleans()):
        u[..., 0, :] = u[..., -1, :]
    return Components(u, s, v)


def one(rank=3, out=5, into=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((rank, out), (rank,), (rank, into))
    return Components(*(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes))


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compose_is_the_sum_of_outer_products():
    u, s, v = one()
    expected = sum(s[r] * torch.outer(u[r], v[r]) for r in range(3))
    assert compose(Components(u, s, v)).shape == (5, 4)
    assert close(compose(Components(u, s, v)), expected)


def test_rank_and_dtype():
    assert one().rank == 3
    assert {factor.dtype for factor in one().to(torch.bfloat16)} == {torch.bfloat16}


# Cutting, padding, joining.


@few
@given(components(full=False), st.integers(0, 3))
def test_padding_adds_zero_components_and_truncating_takes_them_off(first, more):
    padded = pad(first, first.rank + more)
    assert padded.rank == first.rank + more
    assert same(truncate(padded, first.rank), first)
    assert close(compose(padded), compose(first))
    assert not any(factor.any() for factor in (padded.u[..., first.rank :, :], padded.s[..., first.rank :]))
    assert not padded.v[..., first.rank :, :].any()


@few
@given(components(full=False), st.integers(1, 4))
def test_truncating_keeps_the_first(first, rank):
    cut = truncate(first, rank)
    assert cut.rank == min(rank, first.rank)
    assert same(cut, Components(first.u[..., :rank, :], first.s[..., :rank], first.v[..., :rank, :]))


@few
@given(components(full=False))
def test_concatenation_is_the_sum_of_the_matrices(first):
    second = Components(first.u.flip(-1), first.s + 1, first.v.flip(-1))
    both = concatenate(first, second)
    assert both.rank == 2 * first.rank
    assert close(compose(both), compose(first) + compose(second))
    assert same(truncate(both, first.rank), first)


def test_padding_down_is_refused():
    with pytest.raises(ValueError, match="cannot pad 3 components down to 2; truncate instead"):
        pad(one(), 2)


# The canonical form.


@few
@given(components())
def test_canonical_form(first):
    """The same matrix; orthonormal, descending, signs fixed; and a fixed point."""
    form = canonical(first)
    eye = torch.eye(first.rank, dtype=torch.float64).expand(*first.s.shape, first.rank)
    assert close(compose(form), compose(first))
    assert close(form.u @ form.u.mT, eye)
    assert close(form.v @ form.v.mT, eye)
    assert (form.s >= 0).all()
    assert (form.s.diff(dim=-1) <= 0).all()
    assert close(form.s, torch.linalg.svdvals(compose(first))[..., : first.rank])
    largest = form.u.gather(-1, form.u.abs().argmax(-1, keepdim=True))
    assert (largest > 0).all()
    assert close(canonical(form).s, form.s)
    assert all(factor.is_contiguous() for factor in form)


def test_canonical_form_is_unique_where_singular_values_differ():
    """However the components of one matrix are mixed, scaled and signed."""
    first = one()
    mixing = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = torch.linalg.solve(mixing.mT, first.u * first.s.unsqueeze(1))
    other = Components(u, torch.ones(3, dtype=torch.float64), mixing @ first.v)
    assert close(compose(other), compose(first))
    for found, expected in zip(canonical(other), canonical(first), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@few
@given(components())
def test_the_first_of_a_canonical_form_are_the_best(first):
    """Eckart-Young: what is missing is what the other singular values hold."""
    form, matrix = canonical(first), compose(first)
    for rank in range(first.rank + 1):
        error = torch.linalg.matrix_norm(compose(truncate(form, rank)) - matrix)
        assert close(error, form.s[..., rank:].square().sum(-1).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_canonical_form_is_computed_in_float64(dtype):
    first = one(dtype=dtype)
    form = canonical(first)
    assert {factor.dtype for factor in form} == {torch.float64}
    assert close(compose(form), compose(first.to(torch.float64)))


def test_more_components_than_a_matrix_can_have_are_refused():
    with pytest.raises(ValueError, match="5 components of a 6x4 matrix have no orthonormal form"):
        canonical(one(rank=5, out=6, into=4))


@few
@given(components())
def test_a_matrix_is_exact_at_full_rank_and_best_below(first):
    matrix = compose(first)
    full = min(matrix.shape[-2:])
    assert close(compose(from_matrix(matrix, full)), matrix)
    for rank in range(1, full):
        found = from_matrix(matrix, rank)
        assert found.rank == rank
        error = torch.linalg.matrix_norm(compose(found) - matrix)
        assert close(error, torch.linalg.svdvals(matrix)[..., rank:].square().sum(-1).sqrt())


def test_a_matrix_s_components_are_canonical():
    first = one()
    for found, expected in zip(from_matrix(compose(first), 3), canonical(first), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert from_matrix(compose(first).float(), 3).s.dtype == torch.float64


# First values.


@pytest.mark.parametrize(("rank", "active"), [(6, 6), (6, 10), (1, 1)])
def test_random_components_have_the_variance_that_was_asked_for(rank, active):
    """Alone, `rank` of `active` components have that share of it."""
    generator = torch.Generator().manual_seed(0)
    many = Components(torch.empty(200, rank, 20), torch.empty(200, rank), torch.empty(200, rank, 30))
    fill_random(many, 0.09, active, generator)
    matrices = compose(many)
    assert matrices.var().item() == pytest.approx(0.09 * rank / active, rel=0.1)
    assert abs(matrices.mean().item()) < 0.01
    assert torch.equal(many.s, torch.ones(200, rank))
    assert many.u.var().item() == pytest.approx(many.v.var().item(), rel=0.1)


def test_a_variance_of_zero_is_the_zero_matrix_that_still_learns():
    zero = Components(*(torch.full(shape, torch.nan) for shape in ((3, 5), (3,), (3, 4))))
    fill_random(zero, 0.0, 3, torch.Generator().manual_seed(0))
    assert torch.equal(compose(zero), torch.zeros(5, 4))
    leaves = Components(*(factor.requires_grad_() for factor in zero))
    compose(leaves).sum().backward()
    assert leaves.u.grad.abs().min() > 0


def test_random_components_come_from_the_generator_alone():
    first, second = (Components(*(torch.zeros(shape) for shape in ((3, 5), (3,), (3, 4)))) for _ in range(2))
    fill_random(first, 1.0, 3, torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    fill_random(second, 1.0, 3, torch.Generator().manual_seed(1))
    assert same(first, second)
