"""Pictures of matrices: whole PNGs that draw the numbers given to them, whatever the classes are called."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from kindgene import DiT, KindConfig, make_decomposable
from kindgene.evaluation.layers import measure
from kindgene.evaluation.matrices import plain_matrices, pool_matrices, trained_matrices
from kindgene.evaluation.plots import BLUE, ORANGE, page, pictures

NAMES = ("cat", "a $very$ long name, with a formula", "\u5c71")  # a glyph that the font lacks


def decomposable(names, **settings):
    plain = DiT.from_preset("tiny/2", num_classes=len(names), class_names=names)
    kind = KindConfig(num_classes=len(names), learngene_rank=4, tailor_rank=2, **settings)
    return make_decomposable(plain, kind, torch.Generator().manual_seed(0))


def of_pool(names, **settings):
    return measure("ema", pool_matrices(decomposable(names, **settings).decompose()), [[name] for name in names])


def of_training(names):
    model = decomposable(names)
    plain = DiT.from_preset("tiny/2", num_classes=len(names))
    rows = range(len(names))
    return measure("raw", trained_matrices(model.state_dict(), plain, model.kind, rows, ""), [[n] for n in names])


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that would be saved from here on; rendering takes most of the time, and is left out."""
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **options: seen.append(self))
    return seen


def image(data):
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        return picture.size


def axes_of(figure):
    return [axes for part in figure.subfigs for axes in part.axes]


def curves(axes, colour=None):
    return [list(line.get_ydata()) for line in axes.get_lines() if colour in (None, line.get_color())]


def test_which_pictures_there_are(drawn):
    plain = DiT.from_preset("tiny/2", num_classes=2)
    cases = {
        ("spectra", "energy", "overlap"): of_pool(NAMES),  # a pool is orthonormal: no drift
        ("spectra", "energy", "drift", "overlap"): of_training(NAMES),
        ("spectra", "energy"): of_pool(NAMES[:1]),
        ("spectra",): measure("saved", plain_matrices(plain.state_dict(), plain, ""), []),
    }
    for names, structure in cases.items():
        drawn.clear()
        assert tuple(pictures(structure, "title")) == names
        page(structure, "title")
        *parts, whole = drawn
        assert len(axes_of(whole)) == sum(len(axes_of(part)) for part in parts)


def test_they_are_rendered_without_a_warning():
    """Warnings are errors here, and one of the names has a glyph that the font lacks."""
    structure = of_pool(NAMES)
    parts = [image(data) for data in pictures(structure, "title").values()]
    width, height = image(page(structure, "title"))
    assert width == max(width for width, _ in parts)
    assert height > max(height for _, height in parts)


def test_spectra_and_energy_show_every_matrix(drawn):
    structure = of_pool(NAMES, targets="paper+adaln")
    pictures(structure, "title")
    spectra, energy, _ = drawn
    kinds = list(dict.fromkeys(layer.kind for layer in structure.layers))
    assert [axes.get_title() for axes in axes_of(spectra)] == [axes.get_title() for axes in axes_of(energy)] == kinds
    shown = [curve for axes in axes_of(spectra) for curve in curves(axes)]
    assert len(shown) == 2 * len(structure.layers)
    for layer in structure.layers:
        assert layer.shared.singular_values in shown
        means = np.mean([tailor.singular_values for tailor in layer.tailors], axis=0)
        assert any(np.allclose(curve, means) for curve in shown if len(curve) == 2)
    k = axes_of(spectra)[1]
    ranks = [layer.shared.effective_rank for layer in structure.layers if layer.kind == "k"]
    assert k.texts[0].get_text() == f"{np.mean(ranks):.1f} of 4"
    shares = [[100 * t.energy_share for t in layer.tailors] for layer in structure.layers if layer.kind == "k"]
    (found,) = curves(axes_of(energy)[1], ORANGE)
    np.testing.assert_allclose(found, np.mean(shares, axis=1))
    band = axes_of(energy)[1].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((np.min(shares), np.max(shares)))
    low, high = axes_of(energy)[0].get_ylim()  # one scale for all, and nothing is cut off
    assert low == 0
    assert high > 100 * max(t.energy_share or 0 for layer in structure.layers for t in layer.tailors)


def test_drift_stands_beside_random_directions(drawn):
    structure = of_training(NAMES)
    pictures(structure, "title")
    fc1 = next(axes for axes in axes_of(drawn[2]) if axes.get_title() == "fc1")
    layers = [layer for layer in structure.layers if layer.kind == "fc1"]
    expected = [[getattr(layer.shared, side) for layer in layers] for side in ("drift_u", "drift_v")]
    assert curves(fc1, BLUE) == expected
    assert [1 / math.sqrt(128)] * 2 in curves(fc1)
    assert [1 / math.sqrt(32)] * 2 in curves(fc1)
    assert fc1.get_ylim()[1] > max(max(curve) for curve in curves(fc1))


def test_the_map_of_overlaps(drawn):
    structure = of_pool(NAMES)
    pictures(structure, "title")
    left, right, beside, *_ = axes_of(drawn[2])
    for axes, rows, random in (
        (left, structure.overlap_u, structure.random_u),
        (right, structure.overlap_v, structure.random_v),
    ):
        (shown,) = axes.images
        cells = np.ma.filled(shown.get_array(), np.nan)
        assert np.isnan(np.diag(cells)).all()  # a tailor overlaps itself: not drawn
        assert cells[0, 2] == rows[0][2]
        assert shown.norm(random) == 0.5  # as random spaces: the middle of the scale
        assert len(axes.texts) == 6
        assert f"{rows[0][1]:.3f}".lstrip("0") in [text.get_text() for text in axes.texts]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "a $very\u2026ormula", "\u5c71"]
    heights = [bar.get_height() for bar in beside.containers[0]]
    expected = [np.mean([layer.tailors[i].learngene_overlap_u for layer in structure.layers]) for i in range(3)]
    assert heights == pytest.approx(expected)


def test_many_tailors_have_no_names(drawn):
    page(of_pool(tuple(f"n{index}" for index in range(40))), "title")
    maps = [axes for axes in axes_of(drawn[0]) if axes.images]
    assert [(axes.get_xlabel(), len(axes.texts)) for axes in maps] == [("tailor", 0)] * 2


def test_tailors_that_are_still_zero_have_no_overlap(drawn):
    model = decomposable(NAMES, init="svd")
    structure = measure("raw", pool_matrices(model.decompose()), [[name] for name in NAMES])
    assert tuple(pictures(structure, "title")) == ("spectra", "energy")


def test_the_title_is_taken_as_it_is(drawn):
    page(of_pool(NAMES), "pool $x_y")
    assert drawn[0].get_suptitle() == "pool $x_y"


def test_no_global_state_is_left(drawn):
    page(of_pool(NAMES), "title")
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
