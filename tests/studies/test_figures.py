"""Figures: whole PNGs that draw the numbers given to them, the same each time, without pyplot's global state."""

import base64
import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from kindgene.core.pieces import layer_components
from kindgene.studies import figures

DPI = 130


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that are saved from here on."""
    seen, save = [], Figure.savefig

    def savefig(self, *arguments, **options):
        seen.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


def picture(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def lines(axes):
    return [line for line in axes.get_lines() if len(line.get_xdata())]


def test_a_grid_shows_every_image_in_its_place():
    """Ink is dark: -1 is white, +1 black; columns run first."""
    values = torch.tensor([-1.0, 1.0, 0.0, 3.0, -3.0, 1.0])
    seen = picture(figures.image_grid(values.view(6, 1, 1, 1).expand(6, 1, 8, 8), 2, 3))
    cell = 0.62 * DPI
    for index, ink in enumerate((255, 0, 127, 0, 255, 0)):
        row, column = divmod(index, 3)
        y, x = round(0.05 * DPI + (row + 0.5) * cell), round(0.05 * DPI + (column + 0.5) * cell)
        assert seen[y, x].tolist() == pytest.approx([ink] * 3, abs=2), index


def test_a_grid_in_colour():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    seen = picture(figures.image_grid(red, 1, 1))
    assert seen[seen.shape[0] // 2, seen.shape[1] // 2].tolist() == [255, 0, 0]


def test_a_grid_with_labels(drawn):
    images = torch.zeros(4, 1, 8, 8)
    bare = picture(figures.image_grid(images, 2, 2))
    labelled = picture(figures.image_grid(images, 2, 2, row_labels=["a", "b"], column_labels=["c", "d"]))
    assert labelled.shape[0] > bare.shape[0]
    assert labelled.shape[1] > bare.shape[1]
    axes = drawn[1].axes
    assert [one.get_title() for one in axes] == ["c", "d", "", ""]
    assert [text.get_text() for one in axes for text in one.texts] == ["a", "b"]


def test_loss_curves_are_running_means(drawn):
    generator = np.random.default_rng(0)
    curves = {name: generator.uniform(0.1, 1, 50).tolist() for name in ("one", "two", "three", "four")}
    figures.loss_curves({"left": curves, "right": {"short": [0.5, 0.25, 0.5]}}, window=20)
    left, right = drawn[0].axes
    assert [line.get_label() for line in lines(left)] == list(curves)  # none is left out
    for line, losses in zip(lines(left), curves.values(), strict=True):
        assert list(line.get_xdata()) == list(range(20, 51))
        np.testing.assert_allclose(line.get_ydata(), np.convolve(losses, np.ones(20) / 20, "valid"))
    assert list(lines(right)[0].get_xdata()) == [3]  # fewer steps than the window: their mean
    assert lines(right)[0].get_ydata()[0] == pytest.approx(1.25 / 3)


def test_spectra_are_the_pools_singular_values(demo, drawn):
    pool = demo.result.pool
    figures.spectra(pool)
    shown = [tuple(line.get_ydata()) for axes in drawn[0].axes for line in lines(axes)]
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles[:3] == ["q", "k", "v"]
    assert len(titles) == len(set(titles))
    for target, ranks in pool.config.ranks.items():
        for part in layer_components(pool.learngene, target, ranks):
            assert tuple(part.s.tolist()) in shown, target
    assert len(shown) == 2 * sum(len(ranks) for ranks in pool.config.ranks.values())


def test_kept_ranks_are_the_plans(demo, drawn):
    pool, plan = demo.result.pool, demo.result.half
    figures.kept_ranks(pool, plan)
    whole, kept, tailor = ([bar.get_height() for bar in container] for container in drawn[0].axes[0].containers)
    parts = [(target, part) for target, ranks in pool.config.ranks.items() for part in range(len(ranks))]
    ranks = [plan.ranks[target][part] for target, part in parts]
    full = [pool.config.ranks[target][part] for target, part in parts]
    assert kept == [most if rank is None else rank for rank, most in zip(ranks, full, strict=True)]
    assert tailor == [plan.tailor_ranks[target][part] for target, part in parts]
    assert all(a + b <= c for a, b, c in zip(kept, tailor, whole, strict=True))
    assert min(kept) >= 1
    assert sum(kept) < sum(full)  # half the parameters are gone


def test_cost_and_quality_draw_the_rows(drawn):
    rows = [
        {"title": "dense twin", "parameters": 2_000_000, "macs": 3_000, "recognised": 0.5},
        {"title": "recombined {4}", "parameters": 1_000, "macs": 2_000_000_000, "recognised": 1.0},
        {"title": "KIND transfer", "parameters": 500, "macs": 1, "recognised": 0.0},
    ]
    figures.cost_and_quality(rows)
    axes = drawn[0].axes
    for panel, key in zip(axes, ("parameters", "macs"), strict=False):
        assert [bar.get_width() for bar in panel.containers[0]] == [row[key] for row in rows]
    assert axes[2].collections[0].get_offsets()[:, 0].tolist() == [0.5, 1.0, 0.0]
    low, high = axes[2].get_xlim()
    assert low < 0.0 < 1.0 < high
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [row["title"] for row in rows]
    assert [text.get_text().strip() for text in axes[0].texts] == ["2M", "1k", "500"]
    assert [text.get_text().strip() for text in axes[1].texts] == ["3k", "2G", "1"]
    assert [text.get_text().strip() for text in axes[2].texts] == ["50.0 %", "100.0 %", "0.0 %"]
    colours = [to_hex(bar.get_facecolor()) for bar in axes[0].containers[0]]
    assert len(set(colours)) == 3  # dense, recombined and transferred are told apart


def test_the_same_numbers_give_the_same_picture():
    curves = {"panel": {"curve": [1.0, 0.5, 0.25]}}
    assert figures.loss_curves(curves) == figures.loss_curves(curves)


def test_no_global_state_is_left():
    figures.loss_curves({"panel": {"curve": [1.0, 0.5]}})
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
