"""Star fields and what lies among the stars, as a telescope's camera sees them.

A star is a point spread by the optics, the bright ones with the four spikes of a mirror's struts. Galaxies
and nebulae are brightness profiles (exponential disc with logarithmic spiral arms, de Vaucouleurs' law,
clouds, shells). The picture is stretched as astronomers do, so that faint things show.

Shapes: see `canvas.py`; K stars.
"""

import numpy as np

from kindgene.data.canvas import GRID, Dice, Floats, Painter, X, Y, cloud, edge, turned

_FEW, _SOME, _MANY = 12, 40, 90  # stars
_STAR = 3  # random numbers a star takes
_CLOUD = 3**2 + 5**2 + 9**2 + 17**2  # and a cloud


def _field(u_NP: Floats) -> Floats:
    """Stars everywhere, few bright and many faint."""
    dice = Dice(u_NP)
    return _seen(dice, _stars(dice.many(_STAR * _SOME), spread=None, brightest=1.6))


def _cluster(u_NP: Floats) -> Floats:
    """A globular cluster: stars crowded about a centre, with an unresolved glow."""
    dice = Dice(u_NP)
    x, y = X - dice.span(-0.15, 0.15), Y - dice.span(-0.15, 0.15)
    glow = dice.span(0.25, 0.45)
    light = 0.7 * np.exp(-(x * x + y * y) / (2.0 * glow * glow * 0.4))
    return _seen(dice, light + _stars(dice.many(_STAR * _MANY), spread=glow, brightest=0.6))


def _spiral(u_NP: Floats) -> Floats:
    """A spiral galaxy: two or three arms wound about a bulge, seen at an angle."""
    dice = Dice(u_NP)
    x, y = _tilted(dice, 0.45, 1.0)
    radius = np.sqrt(x * x + y * y) + 1e-3
    arms, wound = dice.whole(2, 3), dice.sign() * dice.span(2.2, 3.6)
    phase = arms * (np.arctan2(y, x) - wound * np.log(radius)) + dice.span(0.0, 2.0 * np.pi)
    ridge = (0.5 + 0.5 * np.cos(phase)) ** 3
    disc = np.exp(-radius / dice.span(0.26, 0.36)) * edge(0.95 - radius, 0.3)
    bulge = np.exp(-((radius / dice.span(0.08, 0.13)) ** 2))
    light = 2.2 * disc * (0.08 + ridge) + 1.5 * bulge
    return _seen(dice, light + _stars(dice.many(_STAR * _FEW), spread=None, brightest=0.5))


def _elliptical(u_NP: Floats) -> Floats:
    """An elliptical galaxy: a smooth glow by de Vaucouleurs' law."""
    dice = Dice(u_NP)
    x, y = _tilted(dice, 0.4, 1.0)
    radius = np.sqrt(x * x + y * y) / dice.span(0.22, 0.40)
    light = 0.45 * np.exp(-7.67 * ((radius + 0.01) ** 0.25 - 1.0))
    return _seen(dice, np.minimum(light, 6.0) + _stars(dice.many(_STAR * _FEW), spread=None, brightest=0.5))


def _nebula(u_NP: Floats) -> Floats:
    """Clouds of gas with dark lanes before them, and stars."""
    dice = Dice(u_NP)
    gas, dust = cloud(dice), cloud(dice)
    light = 3.0 * np.clip(gas - 0.36, 0.0, None) ** 1.7 * (0.25 + 0.75 * edge(0.54 - dust, 0.16))
    return _seen(dice, 0.01 + light + _stars(dice.many(_STAR * _FEW), spread=None, brightest=1.2))


def _ring(u_NP: Floats) -> Floats:
    """A planetary nebula: a shell about the star that shed it."""
    dice = Dice(u_NP)
    x, y = _tilted(dice, 0.6, 1.0)
    radius = np.sqrt(x * x + y * y)
    size, thick = dice.span(0.35, 0.60), dice.span(0.07, 0.13)
    shell = np.exp(-(((radius - size) / thick) ** 2)) + 0.3 * edge(size - radius, 0.1)
    light = shell * (0.4 + 1.2 * cloud(dice)) + 2.0 * np.exp(-((radius / 0.05) ** 2))
    return _seen(dice, light + _stars(dice.many(_STAR * _FEW), spread=None, brightest=0.5))


def _tilted(dice: Dice, flattest: float, roundest: float) -> tuple[Floats, Floats]:
    """Coordinates of a disc that lies off centre, turned and inclined."""
    x, y = X - dice.span(-0.15, 0.15), Y - dice.span(-0.15, 0.15)
    x, y = turned(x, y, dice.span(0.0, np.pi))
    return x, y / dice.span(flattest, roundest)


def _stars(u_NP: Floats, spread: Floats | None, brightest: float) -> Floats:
    """Stars, bright ones with spikes: [N, G, G].

    They lie anywhere, or about the centre with the standard deviation `spread` [N, 1, 1]. Fluxes fall off as a power.
    """
    x_NK, y_NK, flux_NK = np.split(u_NP, _STAR, axis=1)
    if spread is None:
        x_NK, y_NK = 2.0 * x_NK - 1.0, 2.0 * y_NK - 1.0
    else:
        far_NK = spread[:, :, 0] * np.sqrt(-2.0 * np.log1p(-x_NK))  # Box and Muller
        x_NK, y_NK = far_NK * np.cos(2.0 * np.pi * y_NK), far_NK * np.sin(2.0 * np.pi * y_NK)
    flux_NK = brightest * np.minimum(0.03 / (flux_NK + 0.02), 1.0)
    across_NKG = X - x_NK[:, :, None]
    down_NKG = X - y_NK[:, :, None]
    light = _separable(flux_NK * 2.2, _bell(across_NKG, 0.032), _bell(down_NKG, 0.032))
    spikes_NK = flux_NK * np.clip(flux_NK - 0.6, 0.0, None)
    light += _separable(spikes_NK, np.exp(-np.abs(across_NKG) / 0.14), _bell(down_NKG, 0.018))
    light += _separable(spikes_NK, _bell(across_NKG, 0.018), np.exp(-np.abs(down_NKG) / 0.14))
    return light


def _bell(distance: Floats, width: float) -> Floats:
    return np.exp(-0.5 * (distance / width) ** 2)


def _separable(flux_NK: Floats, across_NKG: Floats, down_NKG: Floats) -> Floats:
    """The sum over the stars of flux times across times down: [N, G, G]."""
    return np.asarray(np.swapaxes(down_NKG * flux_NK[:, :, None], 1, 2) @ across_NKG)


def _seen(dice: Dice, light: Floats) -> Floats:
    """The camera's picture: sky, noise, and the arcsinh stretch."""
    noise = dice.many(17 * 17).reshape(-1, 17, 17).repeat(4, axis=1).repeat(4, axis=2)[:, 2:66, 2:66] - 0.5
    stretch = 6.0
    bright = np.clip(light + 0.012 + 0.03 * noise, 0.0, None)
    return np.asarray(np.arcsinh(stretch * bright) / np.arcsinh(stretch * 1.6))


def _numbers(stars: int, clouds: int = 0) -> int:
    return _STAR * stars + _CLOUD * clouds + 17 * 17 + GRID


STARS: dict[str, Painter] = {
    "field": Painter(_field, _numbers(_SOME)),
    "cluster": Painter(_cluster, _numbers(_MANY)),
    "spiral": Painter(_spiral, _numbers(_FEW)),
    "elliptical": Painter(_elliptical, _numbers(_FEW)),
    "nebula": Painter(_nebula, _numbers(_FEW, clouds=2)),
    "ring": Painter(_ring, _numbers(_FEW, clouds=1)),
}
