"""Textures: patterns that fill the whole image, of random scale, direction, place and contrast.

Scale, direction and place vary by a part of a period only: a classifier of pixels, which judges generated
images elsewhere, could not tell patterns of free phase apart.

Shapes: see `canvas.py`; K cells.
"""

import numpy as np

from kindgene.data.canvas import Dice, Floats, Painter, X, Y, cloud, edge, turned

_CELLS = 4  # a side


_TURN = 0.25  # radians, either way
_MOVE = 0.12


def _stripes(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = _frame(dice)
    period, dark = dice.span(0.50, 0.68), dice.span(0.35, 0.65)
    return _contrast(dice, edge(dark / 2 - np.abs((x + y) / np.sqrt(2.0) / period % 1.0 - 0.5), 0.15))


def _checks(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = _frame(dice)
    side = dice.span(0.42, 0.54)
    wave = np.sin(np.pi * x / side) * np.sin(np.pi * y / side)
    return _contrast(dice, edge(wave, 0.25))


def _dots(u_NP: Floats) -> Floats:
    """Discs, every second row moved by half."""
    dice = Dice(u_NP)
    x, y = _frame(dice)
    apart, size = dice.span(0.58, 0.72), dice.span(0.24, 0.36)
    row = np.floor(y / apart)
    across = (x / apart + 0.5 * (row % 2.0)) % 1.0 - 0.5
    down = y / apart - row - 0.5
    return _contrast(dice, edge(size - np.sqrt(across**2 + down**2), 0.12))


def _rings(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = _frame(dice)
    return _contrast(dice, 0.5 + 0.5 * np.cos(2.0 * np.pi * np.sqrt(x**2 + y**2) / dice.span(0.48, 0.62)))


def _waves(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = _frame(dice)
    swing = dice.span(0.14, 0.24) * np.sin(2.0 * np.pi * x / dice.span(0.9, 1.2))
    return _contrast(dice, 0.5 + 0.5 * np.cos(2.0 * np.pi * (y + swing) / dice.span(0.46, 0.60)))


def _weave(u_NP: Floats) -> Floats:
    """Bands over and under each other."""
    dice = Dice(u_NP)
    x, y = _frame(dice)
    side, gap = dice.span(0.46, 0.58), dice.span(0.10, 0.16)
    column, row = np.floor(x / side), np.floor(y / side)
    across, down = x / side - column - 0.5, y / side - row - 0.5
    over = (column + row) % 2.0
    level = np.where(over == 0.0, np.cos(np.pi * across), np.cos(np.pi * down))
    band = np.where(over == 0.0, edge(0.5 - gap - np.abs(down), 0.12), edge(0.5 - gap - np.abs(across), 0.12))
    return _contrast(dice, band * (0.25 + 0.75 * level))


def _bricks(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    x, y = _frame(dice)
    high, wide, joint = dice.span(0.36, 0.46), dice.span(0.75, 0.95), dice.span(0.05, 0.08)
    row = np.floor(y / high)
    column = x / wide + 0.5 * (row % 2.0)
    shade = 0.75 + 0.25 * np.sin(12.9898 * np.floor(column) + 78.233 * row)  # differs from brick to brick
    across = np.abs(column % 1.0 - 0.5) * wide
    down = np.abs(y / high - row - 0.5) * high
    return _contrast(dice, shade * edge(wide / 2 - joint - across, 0.06) * edge(high / 2 - joint - down, 0.06))


def _cells(u_NP: Floats) -> Floats:
    """Voronoi cells: bright about their centres, dark along the walls."""
    dice = Dice(u_NP)
    lattice = np.linspace(-0.9, 0.9, _CELLS)
    x_NK = np.tile(lattice, _CELLS) + 0.5 * (dice.many(_CELLS**2) - 0.5)
    y_NK = np.repeat(lattice, _CELLS) + 0.5 * (dice.many(_CELLS**2) - 0.5)
    far = np.sort((X[..., None] - x_NK[:, None, None]) ** 2 + (Y[..., None] - y_NK[:, None, None]) ** 2, axis=-1)
    nearest, second = np.sqrt(far[..., 0]), np.sqrt(far[..., 1])
    return _contrast(dice, edge(second - nearest - 0.09, 0.10) * (1.0 - 0.8 * nearest))


def _noise(u_NP: Floats) -> Floats:
    dice = Dice(u_NP)
    return _contrast(dice, np.clip((cloud(dice, fall=0.75) - 0.5) * 3.5 + 0.5, 0.0, 1.0))


def _frame(dice: Dice) -> tuple[Floats, Floats]:
    """The grid's coordinates, moved and turned a little."""
    x, y = turned(X, Y, dice.span(-_TURN, _TURN))
    return x + dice.span(-_MOVE, _MOVE), y + dice.span(-_MOVE, _MOVE)


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
    "cells": Painter(_cells, 2 * _CELLS**2 + _FEW),
    "noise": Painter(_noise, 3**2 + 5**2 + 9**2 + 17**2 + _FEW),
}
