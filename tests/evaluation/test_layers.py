"""Layers: what is measured of a model's matrices, against dense computations on the very same model."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
import scipy.linalg
import torch

from kindgene import DiT, KindConfig, make_decomposable
from kindgene.core.components import Components, compose
from kindgene.core.pieces import layer_components, split
from kindgene.evaluation.layers import ANGLES, evenly_spaced, measure
from kindgene.evaluation.matrices import Matrix, kind_of, plain_matrices, pool_matrices, short_name, trained_matrices

CLASSES = ("a", "b", "c")
LEARNGENE, TAILOR = 5, 3
RANK = {"*": LEARNGENE, "*.mlp.fc1": 7}


def backbone(classes=CLASSES):
    return DiT.from_preset("tiny/2", num_classes=len(classes), class_names=classes)


@pytest.fixture(scope="module")
def model():
    kind = KindConfig(num_classes=3, learngene_rank=RANK, tailor_rank=TAILOR, targets="paper+adaln")
    made = make_decomposable(backbone(), kind, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    return made


def matrices_of(model, rows=(0, 1, 2)):
    with torch.device("meta"):
        plain = backbone()
    return trained_matrices(model.state_dict(), plain, model.kind, rows, "here")


@pytest.fixture(scope="module")
def measured(model):
    return measure("raw", matrices_of(model), [[name] for name in CLASSES])


def dense(model, layer):
    """The learngene's matrix and each tailor's, formed."""
    pieces, own = split(model), model.layers[layer.target]
    shared = compose(layer_components(pieces.learngene, layer.target, own.ranks)[layer.part])
    tailors = [compose(layer_components(t, layer.target, own.tailor_ranks)[layer.part]) for t in pieces.tailors]
    return shared.double().numpy(), [tailor.double().numpy() for tailor in tailors]


def spaces(matrix, rank):
    u, _, vt = np.linalg.svd(matrix)
    return u[:, :rank], vt[:rank].T


def test_components_are_read_as_they_lie_in_the_state(model):
    """Every part of every target, bit for bit, with the tailors of the rows in their order."""
    pieces, found = split(model), matrices_of(model, rows=(2, 0))
    assert len(found) == sum(layer.parts for layer in model.layers.values())
    for matrix in found:
        layer = model.layers[matrix.target]
        shared = layer_components(pieces.learngene, matrix.target, layer.ranks)[matrix.part]
        assert all(torch.equal(a, b) for a, b in zip(matrix.shared, shared, strict=True))
        for place, row in enumerate((2, 0)):
            own = layer_components(pieces.tailors[row], matrix.target, layer.tailor_ranks)[matrix.part]
            assert all(torch.equal(a[place], b) for a, b in zip(matrix.tailors, own, strict=True))


def test_spectra_energies_and_shares(model, measured):
    for layer in measured.layers:
        shared, tailors = dense(model, layer)
        rank = RANK.get("*.mlp.fc1") if layer.kind == "fc1" else LEARNGENE
        assert (layer.outputs, layer.inputs, layer.shared.rank) == (*shared.shape, rank)
        singular = np.linalg.svd(shared, compute_uv=False)[:rank]
        np.testing.assert_allclose(layer.shared.singular_values, singular, rtol=1e-5)
        assert layer.shared.energy == pytest.approx((shared**2).sum(), rel=1e-5)
        for tailor, own in zip(layer.tailors, tailors, strict=True):
            np.testing.assert_allclose(tailor.singular_values, np.linalg.svd(own, compute_uv=False)[:TAILOR], rtol=1e-5)
            energy = (own**2).sum()
            assert tailor.energy_share == pytest.approx(energy / ((shared**2).sum() + energy), rel=1e-5)


def test_drift_is_that_of_the_components_as_trained(model, measured):
    def expected(rows):
        unit = rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=-1, keepdims=True)
        cosines = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
        return pytest.approx(np.sqrt((cosines**2).mean()), rel=1e-5)

    for layer, matrix in zip(measured.layers, matrices_of(model), strict=True):
        assert (layer.shared.drift_u, layer.shared.drift_v) == (expected(matrix.shared.u), expected(matrix.shared.v))
        for place, tailor in enumerate(layer.tailors):
            assert tailor.drift_u == expected(matrix.tailors.u[place])
            assert tailor.drift_v == expected(matrix.tailors.v[place])


def test_overlaps_and_angles(model, measured):
    layer = next(layer for layer in measured.layers if layer.name == "1 fc2")
    shared, tailors = dense(model, layer)
    bases = [spaces(own, TAILOR) for own in tailors]
    for side, size, overlap, angles, expected in (
        (0, layer.outputs, layer.pairs.overlap_u, layer.pairs.angles_u, layer.pairs.random_u),
        (1, layer.inputs, layer.pairs.overlap_v, layer.pairs.angles_v, layer.pairs.random_v),
    ):
        pairs = [scipy.linalg.subspace_angles(a[side], b[side]) for a, b in itertools.combinations(bases, 2)]
        assert overlap == pytest.approx(np.mean(np.cos(pairs) ** 2), rel=1e-4)
        np.testing.assert_allclose(angles, np.rad2deg(np.mean(np.sort(pairs), axis=0)), rtol=1e-4)
        assert expected == pytest.approx(TAILOR / size)
        base = spaces(shared, LEARNGENE)[side]
        for tailor, own in zip(layer.tailors, bases, strict=True):
            cosines = np.cos(scipy.linalg.subspace_angles(own[side], base))
            found = (tailor.learngene_overlap_u, tailor.learngene_overlap_v)[side]
            assert found == pytest.approx((cosines**2).mean(), rel=1e-4)
    assert layer.random_learngene_u == pytest.approx(LEARNGENE / layer.outputs)
    assert layer.random_learngene_v == pytest.approx(LEARNGENE / layer.inputs)


def test_the_map_is_the_mean_of_all_matrices(model, measured):
    values = []
    for layer in measured.layers:
        a, b = (spaces(own, TAILOR)[0] for own in dense(model, layer)[1][1:])
        values.append((np.linalg.svd(a.T @ b, compute_uv=False) ** 2).mean())
    assert measured.overlap_u[1][2] == pytest.approx(np.mean(values), rel=1e-4)
    assert measured.overlap_u[2][1] == pytest.approx(measured.overlap_u[1][2])
    assert measured.random_u == pytest.approx(np.mean([TAILOR / layer.outputs for layer in measured.layers]))


def test_a_tailors_energy_share_is_over_all_matrices(model, measured):
    shared = sum((dense(model, layer)[0] ** 2).sum() for layer in measured.layers)
    own = sum((dense(model, layer)[1][1] ** 2).sum() for layer in measured.layers)
    assert measured.tailors[1].classes == ["b"]
    assert measured.tailors[1].energy_share == pytest.approx(own / (shared + own), rel=1e-5)


def test_canonical_form_changes_drift_alone(model, measured):
    canonical = measure("raw", pool_matrices(model.decompose()), [[name] for name in CLASSES])
    assert canonical.largest_drift < 1e-6
    assert measured.largest_drift > 0.1
    for before, after in zip(measured.layers, canonical.layers, strict=True):
        assert after.shared.singular_values == pytest.approx(before.shared.singular_values, rel=1e-4)
        assert after.shared.effective_rank == pytest.approx(before.shared.effective_rank, rel=1e-4)
        assert after.pairs.overlap_u == pytest.approx(before.pairs.overlap_u, rel=1e-3)
        assert after.tailors[0].energy_share == pytest.approx(before.tailors[0].energy_share, rel=1e-3)


def test_tailors_that_are_still_zero():
    """What has no direction has no overlap; everything else is told, and all of it is JSON."""
    kind = KindConfig(num_classes=3, learngene_rank=5, tailor_rank=3, targets="paper", init="svd")
    made = make_decomposable(backbone(), kind)
    found = measure("raw", matrices_of(made), [[name] for name in CLASSES])
    for layer in found.layers:
        assert (layer.pairs.overlap_u, layer.pairs.random_u, layer.pairs.angles_v) == (None, None, [None] * 3)
        assert all(tailor.energy == tailor.effective_rank == 0 for tailor in layer.tailors)
        assert {tailor.learngene_overlap_u for tailor in layer.tailors} == {None}
        assert {tailor.energy_share for tailor in layer.tailors} == {0.0}
    assert found.overlap_u == [[None] * 3] * 3
    json.dumps(asdict(found), allow_nan=False)


def test_tailors_of_several_ranks():
    """Padded to the widest; every one is measured with its own rank, and two as the smaller has it."""
    ranks, generator = (1, 3, 2), torch.Generator().manual_seed(5)
    shared = Components(*(torch.randn(*shape, generator=generator) for shape in ((4, 11), (4,), (4, 9))))
    own = Components(*(torch.randn(*shape, generator=generator) for shape in ((3, 3, 11), (3, 3), (3, 3, 9))))
    for factor in own:
        for one, rank in zip(factor, ranks, strict=True):
            one[rank:] = 0.0
    (layer,) = (found := measure("raw", [Matrix("w", 0, 1, shared, own, ranks)], [["a"], ["b"], ["c"]])).layers
    matrices = compose(own).double().numpy()
    bases = [spaces(one, rank)[1] for one, rank in zip(matrices, ranks, strict=True)]
    pairs = [scipy.linalg.subspace_angles(a, b)[::-1] for a, b in itertools.combinations(bases, 2)]
    overlaps = [(np.cos(pair) ** 2).mean() for pair in pairs]
    for tailor, rank, matrix in zip(layer.tailors, ranks, matrices, strict=True):
        expected = np.linalg.svd(matrix, compute_uv=False)[:rank]
        np.testing.assert_allclose(tailor.singular_values, expected, rtol=1e-5)
    assert layer.pairs.overlap_v == pytest.approx(np.mean(overlaps), rel=1e-5)
    assert layer.pairs.random_v == pytest.approx(np.mean([3, 2, 3]) / 9)
    angles = [np.mean([pair[0] for pair in pairs]), pairs[2][1]]  # of which only the last pair has two
    *found_angles, none = layer.pairs.angles_v
    assert (found_angles, none) == (pytest.approx(np.rad2deg(angles).tolist(), rel=1e-4), None)
    assert found.overlap_v[1][2] == pytest.approx(overlaps[2], rel=1e-5)
    base = spaces(compose(shared).double().numpy(), 4)[0]
    cosines = np.cos(scipy.linalg.subspace_angles(spaces(matrices[2], 2)[0], base))
    assert layer.tailors[2].learngene_overlap_u == pytest.approx((cosines**2).mean(), rel=1e-5)


def test_one_tailor_has_no_pair(model):
    found = measure("raw", matrices_of(model, rows=(1,)), [["b"]])
    assert {layer.pairs for layer in found.layers} == {None}
    assert (found.random_u, [tailor.classes for tailor in found.tailors]) == (None, [["b"]])
    assert found.layers[0].tailors[0].learngene_overlap_u > 0


def test_no_tailor_at_all(model):
    found = measure("raw", matrices_of(model, rows=()), [])
    assert (found.tailors, found.overlap_u, found.layers[0].tailors) == ([], [], [])


def test_evenly_spaced():
    assert (evenly_spaced(0, 32), evenly_spaced(3, 32), evenly_spaced(32, 32)) == ([], [0, 1, 2], list(range(32)))
    for count in (33, 64, 1000):
        chosen = evenly_spaced(count, 32)
        assert (len(set(chosen)), chosen[0], max(chosen) < count) == (32, 0, True)
        gaps = {b - a for a, b in itertools.pairwise(chosen)}
        assert max(gaps) - min(gaps) <= 1


def test_angles_of_many_tailors_are_those_of_some():
    """Evenly spaced ones; here all tailors but those are the same, so that one of them would be noticed."""
    count = 2 * ANGLES
    names = tuple(f"n{index}" for index in range(count))
    kind = KindConfig(num_classes=count, learngene_rank=2, tailor_rank=1, targets=["blocks.0.attn.proj"])
    made = make_decomposable(backbone(names), kind, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.bank.tailors.rows[1::2] = made.bank.tailors.rows[1]
    (layer,) = measure("raw", pool_matrices(made.decompose()), [[name] for name in names]).layers
    u = [compose(layer_components(t, layer.target, (1,))[0]).double().numpy() for t in split(made).tailors[::2]]
    bases = [spaces(one, 1)[0] for one in u]
    expected = np.mean([scipy.linalg.subspace_angles(a, b)[0] for a, b in itertools.combinations(bases, 2)])
    assert layer.pairs.angles_u == pytest.approx([np.rad2deg(expected)], rel=1e-4)


def test_where_dense_is_cheaper(model):
    """(G + K)(I + O) >= I O, for width 32: at 16 in a square matrix."""
    for rank, cheaper in ((12, False), (13, True)):
        kind = KindConfig(num_classes=3, learngene_rank=rank, tailor_rank=3, targets=["blocks.0.attn.proj"])
        (layer,) = measure("raw", matrices_of(make_decomposable(backbone(), kind)), [[n] for n in CLASSES]).layers
        assert layer.cheaper_dense is cheaper


def test_a_plain_dit():
    plain = backbone()
    found = measure("saved", plain_matrices(plain.state_dict(), plain, "here"), [])
    assert [layer.name for layer in found.layers[:4]] == ["0 q", "0 k", "0 v", "0 proj"]
    k = plain.blocks[1].attn.qkv.weight.detach().chunk(3)[1].double().numpy()
    layer = next(layer for layer in found.layers if layer.name == "1 k")
    np.testing.assert_allclose(layer.shared.singular_values, np.linalg.svd(k, compute_uv=False), rtol=1e-6)
    assert (layer.shared.rank, layer.shared.drift_u, layer.cheaper_dense) == (32, None, None)
    assert found.largest_drift == 0


def test_thin_pairs_in_some_parts_alone():
    forms = {"blocks.0.attn.qkv": [4, None, 6], "blocks.1.mlp.fc1": [5]}
    thin = DiT.from_preset("tiny/2", num_classes=1, low_rank=forms)
    matrices = plain_matrices(thin.state_dict(), thin, "here")
    layers = {layer.name: layer for layer in measure("saved", matrices, []).layers}
    assert [layers[name].shared.rank for name in ("0 q", "0 k", "0 v", "1 q", "1 fc1")] == [4, 32, 6, 32, 5]
    first, second = thin.blocks[0].attn.qkv.parts[2]
    weight = (second.weight @ first.weight).detach().double().numpy()
    found = layers["0 v"].shared
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(weight, compute_uv=False)[:6], rtol=1e-5)
    assert found.drift_u > 0.01


@pytest.mark.parametrize(
    ("place", "name", "kind"),
    [
        (("blocks.12.attn.qkv", 1, 3), "12 k", "k"),
        (("blocks.0.adaLN_modulation.1", 0, 1), "0 adaLN", "adaLN"),
        (("transformer_blocks.3.attn1.to_out.0", 0, 1), "3 to_out", "to_out"),
        (("blocks.2.gate_up", 1, 2), "2 gate_up[1]", "gate_up[1]"),
        (("head.proj", 0, 1), "head.proj", "head.proj"),
    ],
)
def test_names(place, name, kind):
    assert (short_name(*place), kind_of(*place)) == (name, kind)


def test_what_is_wrong_is_named(model):
    state = model.state_dict()
    with torch.device("meta"):
        plain = backbone()
    lost = {key: value for key, value in state.items() if key != "module.blocks.1.mlp.fc2.u"}
    with pytest.raises(ValueError, match=r"here: module\.blocks\.1\.mlp\.fc2\.u is missing"):
        trained_matrices(lost, plain, model.kind, [0], "here")
    with pytest.raises(ValueError, match=r"module\.blocks\.0\.attn\.proj\.s has shape \[2\], expected \[5\]"):
        trained_matrices({**state, "module.blocks.0.attn.proj.s": torch.ones(2)}, plain, model.kind, [0], "here")
    broken = state["module.blocks.0.attn.proj.v"].clone()
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"attn\.proj\.v has values that are not finite"):
        trained_matrices({**state, "module.blocks.0.attn.proj.v": broken}, plain, model.kind, [0], "here")
