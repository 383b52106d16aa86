"""How far the map may be from the truth at each voxel: its standard error, noise and bias together.

Let M₁, M₂ be the half maps, M their average, r₁, r₂ the direct inversions of the same halves, cut at the map's last
shell, and S the truth, cut there too. The noise of M is what the halves differ by; its bias is what both halves miss
alike, and the inversions show that without a bias of their own:

    Var M        = ¼ E (M₁ − M₂)²
    (E M − S)²   = E (r₁ − M₁)(r₂ − M₂)

because the noise of half 1 is independent of half 2. One voxel says little, so both are averaged: by classes of
places, from the emptiest to the densest parts of the particle, between which errors differ most, and the noise, of
which more is known, in windows as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from emsplat.fourier import maps
from emsplat.validation.combination import Volume, around, places

_CLASSES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)  # quantiles of the local density, over the mask, of the classes of places
_DENSITY_BLUR = 1.0  # standard deviation of the window of the local density, in half periods of the last shell
_WINDOW = 3.0  # standard deviation of the window of the noise, in half periods of the last shell
_FAR = 4.0  # the most that the noise in a window may differ from that of its classes
_MIN_BIAS = 0.1  # least squared bias of a class, as a share of that of the whole mask

Array = NDArray[np.float64]


def standard_error(
    raw: tuple[Volume, Volume], halves: tuple[Volume, Volume], mask: Volume, last_shell: int
) -> NDArray[np.float32]:
    """(D, D, D) the standard error of the average of two half maps at each voxel of the mask; 0 outside it.

    Args:
        raw, halves: (D, D, D) the direct inversions and the half maps of both halves.
        mask: (D, D, D).
        last_shell: the last shell of the map; finer detail is not part of what it is compared with.
    """
    if not np.any(mask > 0):
        return np.zeros_like(mask)
    box_size = len(mask)
    half_period = box_size / last_shell
    # Outside the box that holds the mask and the windows about its voxels there is nothing to be found.
    near = around(mask, int(np.ceil(3 * _DENSITY_BLUR * half_period)))
    halves, mask_near = (halves[0][near], halves[1][near]), mask[near]
    missed = [_cut(r, last_shell)[near] - half for r, half in zip(raw, halves, strict=True)]
    weight = np.square(mask_near)
    classes = places(0.5 * (halves[0] + halves[1]), mask_near, _DENSITY_BLUR * half_period, _CLASSES)
    noise = _noise(np.square(0.5 * (halves[0] - halves[1])), weight, classes, _WINDOW * half_period)
    variance = noise + _bias(missed[0] * missed[1], weight, classes, missed)
    error = np.zeros_like(mask)
    error[near] = np.where(mask_near > 0, np.sqrt(np.maximum(variance, 0)), np.float32(0))
    return error


def _cut(volume: Volume, last_shell: int) -> Volume:
    """The volume without the shells beyond the last one."""
    if last_shell >= len(volume) // 2:
        return volume
    return maps.radial_filter(volume, np.ones(last_shell + 1))


def _noise(square: Volume, weight: Volume, classes: list[Volume], window: float) -> Volume:
    """The variance of the map: that of its classes, times the excess in a window about each place."""
    levels = _levels(square, weight, classes)
    of_classes = _at_places(
        np.maximum(levels, 1e-3 * max(float(levels.max()), float(np.finfo(np.float32).tiny))), classes
    )
    found, expected = (
        gaussian_filter(values * weight, window, truncate=3, mode="constant") for values in (square, of_classes)
    )
    excess = np.divide(found, expected, out=np.ones_like(found), where=expected > 1e-6 * float(expected.max()))
    return of_classes * np.clip(excess, 1 / _FAR, _FAR)


def _bias(product: Volume, weight: Volume, classes: list[Volume], missed: list[Volume]) -> Volume:
    """The squared bias of the map, by class, as far as the classes can be told from the whole mask.

    A class's own bias is drawn towards that of the whole mask by the share of the spread between the classes that
    their errors explain.
    """
    total = float(weight.sum(dtype=np.float64))
    whole = max(float((product * weight).sum(dtype=np.float64)) / total, 0.0)
    levels = _levels(product, weight, classes)
    # Variance of a product of unrelated noises over n terms; the noise is white within the last shell's ball.
    powers = [float((np.square(one) * weight).sum(dtype=np.float64)) / total for one in missed]
    terms = np.array([max(float((weight * one).sum(dtype=np.float64)), 1.0) for one in classes])
    errors = powers[0] * powers[1] / terms
    spread = float(np.average(np.square(levels - whole), weights=terms))
    explained = float(np.average(errors, weights=terms))
    kept = max(1 - explained / spread, 0.0) if spread > 0 else 0.0
    return _at_places(np.maximum(whole + kept * (levels - whole), _MIN_BIAS * whole), classes)


def _levels(values: Volume, weight: Volume, classes: list[Volume]) -> Array:
    """(n,) a value for each class, so that the mixture at every place comes nearest to the values."""
    inside = weight > 0
    value, members = values[inside], [one[inside] for one in classes]
    weighted = [weight[inside] * one for one in members]
    gram = np.array([[float(np.dot(a, b)) for b in members] for a in weighted])
    sums = np.array([float(np.dot(a, value)) for a in weighted])
    return np.linalg.solve(gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram)), sums)


def _at_places(levels: Array, classes: list[Volume]) -> Volume:
    """(D, D, D) the mixture of the classes' values."""
    return sum((np.float32(level) * one for level, one in zip(levels, classes, strict=True)), np.zeros_like(classes[0]))
