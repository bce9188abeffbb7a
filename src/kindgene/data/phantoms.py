"""MRI-like phantoms: what a scanner's slices look like, from ellipses with random anatomy.

After Shepp and Logan's head phantom (1974), with bright fat, dark bone, a random contrast of fluid against tissue
(T1- or T2-like), uneven coil sensitivity, and noise. Nothing in them is anatomy to learn from.

Shapes: see `canvas.py`.
"""

import numpy as np

from kindgene.data.canvas import GRID, Dice, Floats, Painter, X, Y, cloud, edge, ellipse, smooth_noise, turned

_FOLDS = 17  # lattice points a side of the cortex's folds and of the scanner's noise
_COARSE = (3, 5, 9)


def _axial(u_NP: Floats) -> Floats:
    return _head(Dice(u_NP), spots=False)


def _lesion(u_NP: Floats) -> Floats:
    return _head(Dice(u_NP), spots=True)


def _head(dice: Dice, spots: bool) -> Floats:
    """A head from above: two ventricles beside the midline; bright spots where `spots`."""
    x, y = _posed(dice)
    wide, long = dice.span(0.62, 0.74), dice.span(0.78, 0.90)
    image, brain, fluid = _skull(dice, x, y, wide, long)
    apart, lean, open_ = dice.span(0.10, 0.16), dice.span(0.15, 0.45), dice.span(0.05, 0.11)
    high = dice.span(-0.15, 0.05)
    for side in (-1.0, 1.0):
        vx, vy = turned(x - side * apart, y - high, side * lean)
        image = _over(image, ellipse(vx, vy, open_, dice.span(0.20, 0.34)), fluid)
    image = _over(image, brain * (1.0 - edge(np.abs(x) - 0.015, 0.03)) * edge(np.abs(y) - 0.35), 0.12)
    if spots:
        for _ in range(2):
            sx = x - dice.sign() * dice.span(0.20, 0.42) * wide / 0.7
            sy = y - dice.span(-0.45, 0.45)
            round_ = dice.span(0.07, 0.16)
            image = _over(image, ellipse(sx, sy, round_, round_ * dice.span(0.7, 1.3)), 1.0)
    return _scanned(dice, image)


def _coronal(u_NP: Floats) -> Floats:
    """A head from the front: round above, temporal lobes and brain stem below."""
    dice = Dice(u_NP)
    x, y = _posed(dice)
    y = y + 0.12
    image, brain, fluid = _skull(dice, x, y, dice.span(0.70, 0.80), dice.span(0.66, 0.76))
    for side in (-1.0, 1.0):
        lobe = ellipse(x - side * dice.span(0.36, 0.44), y - 0.45, dice.span(0.22, 0.28), dice.span(0.22, 0.28))
        image = _over(image, lobe, 0.55)
        vx, vy = turned(x - side * dice.span(0.10, 0.16), y + 0.10, side * dice.span(0.6, 1.0))
        image = _over(image, ellipse(vx, vy, dice.span(0.04, 0.08), dice.span(0.14, 0.22)), fluid)
    stem = ellipse(x, y - 0.72, dice.span(0.11, 0.15), dice.span(0.28, 0.36))
    image = _over(image, stem, 0.62)
    image = _over(image, brain * (1.0 - edge(np.abs(x) - 0.015, 0.03)) * edge(-y - 0.22), 0.12)
    return _scanned(dice, image)


def _sagittal(u_NP: Floats) -> Floats:
    """A head from the side: the arch of the corpus callosum, cerebellum, brain stem, a face in front."""
    dice = Dice(u_NP)
    x, y = _posed(dice)
    facing = dice.sign()
    x = x * facing
    face = ellipse(x + 0.50, y - 0.45, dice.span(0.26, 0.34), dice.span(0.42, 0.50))
    neck = ellipse(x - 0.18, y - 0.85, dice.span(0.28, 0.36), dice.span(0.30, 0.40))
    base = np.maximum(face, neck) * dice.span(0.30, 0.45)
    image, brain, fluid = _skull(dice, x - 0.05, y + 0.18, dice.span(0.76, 0.84), dice.span(0.62, 0.70))
    image = np.maximum(image, base * (1.0 - brain))
    bent = dice.span(0.28, 0.36)
    radius = np.sqrt(((x - 0.02) / bent) ** 2 + ((y + 0.02) / (bent * 0.75)) ** 2)
    arch = edge(0.16 - np.abs(radius - 1.0), 0.10) * edge(-y - 0.02)
    image = _over(image, arch, 0.88)
    image = _over(image, ellipse(x - 0.02, y + 0.02, bent * 0.72, bent * 0.40) * edge(-y + 0.04), fluid)
    image = _over(image, ellipse(x - 0.44, y - 0.30, dice.span(0.22, 0.28), dice.span(0.17, 0.22)), 0.70)
    sx, sy = turned(x - 0.14, y - 0.50, dice.span(-0.3, -0.1))
    image = _over(image, ellipse(sx, sy, dice.span(0.09, 0.12), dice.span(0.42, 0.50)), 0.75)
    return _scanned(dice, image)


def _abdomen(u_NP: Floats) -> Floats:
    """A trunk from above: liver, two kidneys, spine, bowel."""
    dice = Dice(u_NP)
    x, y = _posed(dice)
    wide, deep = dice.span(0.84, 0.94), dice.span(0.58, 0.70)
    fat, wall = dice.span(0.05, 0.14), dice.span(0.03, 0.06)
    image = 0.90 * ellipse(x, y, wide, deep)
    image = _over(image, ellipse(x, y, wide - fat, deep - fat), 0.25)
    inside = ellipse(x, y, wide - fat - wall, deep - fat - wall)
    image = _over(image, inside, 0.40 + 0.30 * (cloud(dice, _COARSE) - 0.5))
    liver = ellipse(x + dice.span(0.32, 0.42), y + dice.span(0.06, 0.16), dice.span(0.34, 0.44), dice.span(0.26, 0.36))
    image = _over(image, liver * inside, dice.span(0.55, 0.70))
    for side in (-1.0, 1.0):
        kx, ky = turned(x - side * dice.span(0.34, 0.44), y - dice.span(0.14, 0.24), side * dice.span(0.2, 0.7))
        image = _over(image, ellipse(kx, ky, dice.span(0.10, 0.13), dice.span(0.15, 0.20)), 0.85)
        image = _over(image, ellipse(kx + side * 0.03, ky, dice.span(0.03, 0.05), dice.span(0.06, 0.09)), 0.45)
    bone = dice.span(0.11, 0.15)
    image = _over(image, ellipse(x, y - deep * 0.48, bone, bone * 0.85), dice.span(0.65, 0.80))
    image = _over(image, ellipse(x, y - deep * 0.48 - 0.16, dice.span(0.04, 0.06), dice.span(0.04, 0.06)), 0.05)
    return _scanned(dice, image)


def _knee(u_NP: Floats) -> Floats:
    """A bent leg from the side: thigh bone above, shin bone below, knee cap in front."""
    dice = Dice(u_NP)
    x, y = _posed(dice)
    x = x * dice.sign()
    limb = dice.span(0.50, 0.60)
    image = dice.span(0.75, 0.90) * edge(limb - np.abs(x + 0.05 * np.sin(3.0 * y)))
    muscle = edge(limb - dice.span(0.08, 0.14) - np.abs(x + 0.05 * np.sin(3.0 * y)))
    image = _over(image, muscle, 0.35 + 0.20 * (cloud(dice, _COARSE) - 0.5))
    joint, thick = dice.span(-0.06, 0.10), dice.span(0.17, 0.23)
    marrow = dice.span(0.70, 0.90)
    for end in (-1.0, 1.0):
        along = end * (y - joint)
        shaft = edge(thick - np.abs(x - 0.03)) * edge(along - 0.22)
        knob = ellipse(x - 0.03, along - 0.24, thick + dice.span(0.09, 0.15), dice.span(0.17, 0.21))
        bone = np.maximum(shaft, knob)
        image = _over(image, np.clip(1.35 * bone, 0.0, 1.0), 0.08)
        image = _over(image, edge(bone - 0.8, 0.3), marrow)
    cap = ellipse(x + limb * 0.72, y - joint + 0.22, dice.span(0.06, 0.09), dice.span(0.13, 0.18))
    image = _over(image, cap, marrow)
    return _scanned(dice, image)


def _posed(dice: Dice) -> tuple[Floats, Floats]:
    """The grid's coordinates for a patient lying a little askew and off centre."""
    x, y = turned(X - dice.span(-0.06, 0.06), Y - dice.span(-0.06, 0.06), dice.span(-0.16, 0.16))
    size = dice.span(0.92, 1.06)
    return x / size, y / size


def _skull(dice: Dice, x: Floats, y: Floats, wide: Floats, long: Floats) -> tuple[Floats, Floats, Floats]:
    """(image, where the brain is, how bright fluid is): bright scalp, dark bone, folded brain."""
    scalp, bone = dice.span(0.03, 0.06), dice.span(0.04, 0.07)
    fluid = np.where(dice.span(0.0, 1.0) < 0.6, 0.08, 0.95)  # T1- or T2-like
    image = dice.span(0.80, 1.0) * ellipse(x, y, wide, long)
    image = _over(image, ellipse(x, y, wide - scalp, long - scalp), 0.06)
    half_x, half_y = wide - scalp - bone, long - scalp - bone
    brain = ellipse(x, y, half_x, half_y)
    rim = np.sqrt((x / half_x) ** 2 + (y / half_y) ** 2)
    folds = smooth_noise(dice.many(_FOLDS * _FOLDS).reshape(-1, _FOLDS, _FOLDS)) - 0.5
    tissue = dice.span(0.45, 0.60) + 0.06 * np.cos(5.0 * rim) + folds * (0.15 + 0.55 * edge(rim - 0.72, 0.3))
    return _over(image, brain, tissue), brain, fluid


def _over(image: Floats, mask: Floats, value: Floats | float) -> Floats:
    """`value` where the mask is 1, the image where it is 0."""
    return image + mask * (value - image)


def _scanned(dice: Dice, image: Floats) -> Floats:
    """Uneven sensitivity and a scanner's noise, which is never negative."""
    tilt = dice.span(0.0, 2.0 * np.pi)
    coil = 1.0 + dice.span(0.0, 0.25) * (X * np.cos(tilt) + Y * np.sin(tilt))
    noise = (smooth_noise(dice.many(_FOLDS * _FOLDS).reshape(-1, _FOLDS, _FOLDS)) - 0.5) * dice.span(0.02, 0.10)
    return np.abs(image * coil + noise)


_NUMBERS = 2 * _FOLDS * _FOLDS + GRID + sum(side * side for side in _COARSE)

PHANTOMS: dict[str, Painter] = {
    "axial": Painter(_axial, _NUMBERS),
    "coronal": Painter(_coronal, _NUMBERS),
    "sagittal": Painter(_sagittal, _NUMBERS),
    "lesion": Painter(_lesion, _NUMBERS),
    "abdomen": Painter(_abdomen, _NUMBERS),
    "knee": Painter(_knee, _NUMBERS),
}
