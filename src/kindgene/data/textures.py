"""Textures: patterns that fill the whole image, of random scale, direction, phase and contrast.

Shapes: see `canvas.py`; K cells.
"""

import numpy as np

from kindgene.data.canvas import Dice, Floats, Painter, X, Y, cloud, edge, turned

_CELLS = 24


def _stripes(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, _ = _frame(dice, np.pi)
    period, dark = dice.span(0.30, 0.65), dice.span(0.35, 0.65)
    return _contrast(dice, edge(dark - x / period % 1.0, 0.15))


def _checks(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = _frame(dice, np.pi / 2)
    side = dice.span(0.25, 0.50)
    wave = np.sin(np.pi * x / side) * np.sin(np.pi * y / side)
    return _contrast(dice, edge(wave, 0.25))


def _dots(u_NP: Floats) -> Floats:
    """Discs on a square lattice or, every second row moved, a hexagonal one."""
    dice = Dice(u_NP)
    x, y = _frame(dice, np.pi / 2)
    apart, size = dice.span(0.38, 0.65), dice.span(0.24, 0.36)
    moved = np.where(dice.span(0.0, 1.0) < 0.5, 0.0, 0.5)
    row = np.floor(y / apart)
    across = (x / apart + moved * (row % 2.0)) % 1.0 - 0.5
    down = y / apart - row - 0.5
    return _contrast(dice, edge(size - np.sqrt(across**2 + down**2), 0.12))


def _rings(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = X - dice.span(-0.8, 0.8), Y - dice.span(-0.8, 0.8)
    period, phase = dice.span(0.28, 0.55), dice.span(0.0, 1.0)
    return _contrast(dice, 0.5 + 0.5 * np.cos(2.0 * np.pi * (np.sqrt(x**2 + y**2) / period + phase)))


def _waves(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = _frame(dice, np.pi)
    swing = dice.span(0.10, 0.20) * np.sin(2.0 * np.pi * y / dice.span(0.6, 1.1))
    return _contrast(dice, 0.5 + 0.5 * np.sin(2.0 * np.pi * (x + swing) / dice.span(0.30, 0.55)))


def _weave(u_NP: Floats) -> Floats:
    """Bands over and under each other."""
    dice = Dice(u_NP)
    x, y = _frame(dice, np.pi / 2)
    side, gap = dice.span(0.36, 0.56), dice.span(0.10, 0.16)
    column, row = np.floor(x / side), np.floor(y / side)
    across, down = x / side - column - 0.5, y / side - row - 0.5
    over = (column + row) % 2.0
    level = np.where(over == 0.0, np.cos(np.pi * across), np.cos(np.pi * down))
    band = np.where(over == 0.0, edge(0.5 - gap - np.abs(down), 0.12), edge(0.5 - gap - np.abs(across), 0.12))
    return _contrast(dice, band * (0.25 + 0.75 * level))


def _bricks(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = _frame(dice, 0.5)
    high, wide, joint = dice.span(0.30, 0.45), dice.span(0.65, 0.95), dice.span(0.05, 0.09)
    row = np.floor(y / high)
    column = x / wide + 0.5 * (row % 2.0)
    shade = 0.75 + 0.25 * np.sin(12.9898 * np.floor(column) + 78.233 * row)  # differs from brick to brick
    across = np.abs(column % 1.0 - 0.5) * wide
    down = np.abs(y / high - row - 0.5) * high
    return _contrast(dice, shade * edge(wide / 2 - joint - across, 0.06) * edge(high / 2 - joint - down, 0.06))


def _cells(u_NP: Floats) -> Floats:
    """Voronoi cells: bright about their centres, dark along the walls."""
    dice = Dice(u_NP)
    x_NK, y_NK = (2.4 * dice.many(_CELLS) - 1.2 for _ in range(2))
    far = np.sort((X[..., None] - x_NK[:, None, None]) ** 2 + (Y[..., None] - y_NK[:, None, None]) ** 2, axis=-1)
    nearest, second = np.sqrt(far[..., 0]), np.sqrt(far[..., 1])
    return _contrast(dice, edge(second - nearest - 0.09, 0.10) * (1.0 - 0.8 * nearest))


def _noise(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    return _contrast(dice, np.clip((cloud(dice, fall=0.75) - 0.5) * 3.5 + 0.5, 0.0, 1.0))


def _frame(dice: Dice, turn: float) -> tuple[Floats, Floats]:
    """The grid's coordinates, moved anywhere and turned by up to `turn` radians."""
    x, y = turned(X, Y, dice.span(-turn / 2, turn / 2))
    return x + dice.span(0.0, 4.0), y + dice.span(0.0, 4.0)


def _contrast(dice: Dice, pattern: Floats) -> Floats:
    """The pattern between a random dark and a random bright."""
    dark = dice.span(0.0, 0.25)
    return dark + pattern * (dice.span(0.75, 1.0) - dark)


_FEW = 16

TEXTURES: dict[str, Painter] = {
    "stripes": Painter(_stripes, _FEW),
    "checks": Painter(_checks, _FEW),
    "dots": Painter(_dots, _FEW),
    "rings": Painter(_rings, _FEW),
    "waves": Painter(_waves, _FEW),
    "weave": Painter(_weave, _FEW),
    "bricks": Painter(_bricks, _FEW),
    "cells": Painter(_cells, 2 * _CELLS + _FEW),
    "noise": Painter(_noise, 3**2 + 5**2 + 9**2 + 17**2 + _FEW),
}
