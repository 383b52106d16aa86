"""The final map: the Gaussians and the direct inversion, combined shell by shell.

Where images are clean, the bias of the Gaussians is the larger error; where they are noisy, the noise of the direct
inversion is. Both errors can be measured from the two halves. Let S be the truth, X_j any estimate of it, the average
of an estimate X_j1 from half 1 and X_j2 from half 2, and r₁, r₂ the direct inversions. With ⟨·,·⟩ the sum over a shell
of masked maps,

    ⟨S, X_j⟩ = ½(⟨X_j1, r₂⟩ + ⟨X_j2, r₁⟩)

has no bias, whatever prior made X_j, and ⟨X_j, X_k⟩ is computed directly. The non-negative weights a_j that bring
Σ a_j X_j nearest to the truth therefore follow from sums that the halves provide.

There are six estimates: the Gaussians and the direct inversion, each in three classes of places, from the emptiest to
the densest parts of the particle. At one resolution, errors differ more between these classes than between anything
else, because the noise of the inversion is as strong in empty places as in dense ones. The classes of a half come from
its own Gaussians alone, so that X_j1 does not depend on r₂.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, optimize

from emsplat.fourier import maps
from emsplat.runtime.threads import side_by_side
from emsplat.validation.correlation import Curve, inverse, pooling_half_width, variance_of_mean

KINDS = ("gaussians", "inversion")
_CLASSES = (0.1, 0.5, 0.9)  # quantiles of the local density, over the mask, at which a class is alone
_DENSITY_BLUR = 1.0  # standard deviation of the window of the local density, in half periods of the last shell
_RIDGE = 1e-6  # share of the power of each estimate that is added to it, because estimates may be nearly equal
_CHUNK = 2048  # Fourier voxels that are multiplied at once

Volume = NDArray[np.float32]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Combination:
    """Weights of the estimates in every shell, and the half maps that they make. The map is their average."""

    halves: tuple[Volume, Volume]  # (D, D, D)
    weights: Array  # (6, D//2) over shells 1 .. D//2: of the Gaussians in three classes, then of the inversion
    inversion_share: Curve  # (D//2,) part of the map's power in the mask that the inversion brings; 0 beyond the limit
    optimism: Curve  # (D//2,) by which ½(⟨M₁,r₂⟩ + ⟨M₂,r₁⟩) is too large on average, over ⟨M,M⟩; for even noise


def combine(
    raw: tuple[Volume, Volume], gaussian: tuple[Volume, Volume], mask: Volume, limit: int, last: int
) -> Combination:
    """The combination of the Gaussian half maps with the direct inversions of the same halves.

    Outside the mask the inversion does not enter, and the Gaussians have the weight of the emptiest places.

    Args:
        raw, gaussian: (D, D, D) direct inversions and Gaussian maps of both halves.
        mask: (D, D, D).
        limit: the last shell in which anything can be measured, at least 1.
        last: the shells beyond the limit and up to this one take the weights of the limit; those beyond are empty.
    """
    box_size = len(mask)
    blur = _DENSITY_BLUR * box_size / limit
    spectra = side_by_side(lambda r, v: _estimates(r, v, mask, blur), raw, gaussian)
    grams = _shell_grams([*spectra[0], *spectra[1], *(maps.half_spectrum(r * mask) for r in raw)], box_size)
    weights, optimism, share = _solved(_Sums.of(grams), mask)
    weights[limit:last] = weights[limit - 1]
    weights[last:], share[limit:] = 0, 0
    halves = side_by_side(lambda x, v: _weighted(x, v, mask, weights), spectra, gaussian)
    return Combination((halves[0], halves[1]), weights.T, share, optimism)


# --- estimates --------------------------------------------------------------------------------------------------------


def _estimates(raw: Volume, gaussian: Volume, mask: Volume, blur: float) -> list[NDArray[np.complex64]]:
    """The masked spectra of the estimates of one half, those of the Gaussians before those of the inversion."""
    near = around(mask, int(np.ceil(3 * blur)))
    classes = places(gaussian[near], mask[near], blur, _CLASSES)
    spectra = []
    for volume in (gaussian[near] * mask[near], raw[near] * mask[near]):
        for one in classes:
            whole = np.zeros_like(mask)
            whole[near] = volume * one
            spectra.append(maps.half_spectrum(whole))
    return spectra


def around(mask: Volume, margin: int) -> tuple[slice, ...]:
    """The box that holds the voxels of a mask, which must have some, and a margin in voxels."""
    (bounds,) = ndimage.find_objects((mask > 0).astype(np.int8))
    return tuple(slice(max(one.start - margin, 0), one.stop + margin) for one in bounds)


def places(density: Volume, mask: Volume, blur: float, quantiles: Sequence[float]) -> list[Volume]:
    """(D, D, D) memberships that add up to 1, from the emptiest to the densest places of the mask.

    The local density is the root mean square about a place; between the quantiles that stand for two classes a place
    belongs to both. Places outside the mask, which nobody asks for, belong to the emptiest class.

    Args:
        blur: standard deviation of the window of the local density, in voxels.
        quantiles: of the local density over the mask, rising, at which a place belongs to one class alone.
    """
    classes = [np.full(mask.shape, number == 0, dtype=np.float32) for number in range(len(quantiles))]
    within = mask > 0
    if not within.any():
        return classes
    near = around(mask, int(np.ceil(3 * blur)))
    square: Volume = ndimage.gaussian_filter(np.square(density[near]), blur, truncate=3)
    square = square[within[near]]
    level = np.log(np.maximum(square, max(float(square.max()) * 1e-6, float(np.finfo(np.float32).tiny))))
    inside = level[mask[within] > 0.5]
    centres = np.quantile(inside if inside.size else level, quantiles)
    centres += 1e-6 * np.arange(len(centres))  # distinct even where all places are alike
    for one, alone in zip(classes, np.eye(len(centres)), strict=True):
        one[within] = np.interp(level, centres, alone)
    return classes


def _weighted(spectra: list[NDArray[np.complex64]], gaussian: Volume, mask: Volume, weights: Array) -> Volume:
    """The half map: a weighted sum of the estimates, and the Gaussians outside the mask.

    Args: spectra: one for each estimate; they are changed and taken out of the list, which saves memory.
    """
    box_size = len(mask)
    radius = maps.radius(box_size)
    total = np.zeros_like(spectra[0])
    for curve in weights.T:
        spectrum = spectra.pop(0)
        if np.any(curve > 0):
            spectrum *= _at(radius, curve)
            total += spectrum
    del spectrum
    outside = maps.half_spectrum(gaussian * (1 - mask))
    outside *= _at(radius, weights[:, 0])
    total += outside
    del outside
    return maps.from_half_spectrum(total, box_size)


def _at(radius: NDArray[np.float32], curve: Curve) -> NDArray[np.float32]:
    """A curve over shells 1 .. n at every Fourier voxel. Shell 0 takes the value of shell 1; beyond n it is 0."""
    padded = np.concatenate([curve[:1], curve, [0.0]])
    return np.interp(radius, np.arange(len(padded)), padded, right=0.0).astype(np.float32)


# --- moments ----------------------------------------------------------------------------------------------------------


def _shell_grams(spectra: list[NDArray[np.complex64]], box_size: int) -> Array:
    """(D//2, n, n) sums over shells 1 .. D//2 of the full spectra: the product of every map with every other map.

    The chunks have so few columns that they are never divided among threads, and the sums do not depend on the threads.
    """
    n, last = len(spectra), box_size // 2
    shell = maps.shell_index(box_size)
    chosen = np.flatnonzero((shell > 0) & (shell <= last))
    chosen = chosen[np.argsort(shell.ravel()[chosen], kind="stable")]
    ends = np.searchsorted(shell.ravel()[chosen], np.arange(1, last + 2))
    column = chosen % (box_size // 2 + 1)
    alone = (column == 0) | ((box_size % 2 == 0) & (column == box_size // 2))
    twice = np.where(alone, 1.0, np.sqrt(2.0)).astype(np.float32)
    rows = [spectrum.ravel() for spectrum in spectra]
    grams = np.zeros((last, n, n))
    for k in range(last):
        for first in range(int(ends[k]), int(ends[k + 1]), _CHUNK):
            here = slice(first, min(first + _CHUNK, int(ends[k + 1])))
            part = torch.from_numpy(np.stack([row[chosen[here]] * twice[here] for row in rows]).view(np.float32))
            grams[k] += (part @ part.T).numpy()
    return grams


@dataclass(frozen=True)
class _Sums:
    """Sums over shells 1 .. K of masked maps, each shell over the power of the Gaussian map: J estimates X of S."""

    power: Array  # (K, J, J) ⟨X_j, X_k⟩ of the averages of the halves
    truth: Array  # (K, J) ⟨S, X_j⟩, unbiased
    error: Array  # (K, J, J) covariance of `truth` times the number of independent terms

    @staticmethod
    def of(grams: Array) -> _Sums:
        """The sums that follow from those of all pairs of X_11 .. X_J1, X_12 .. X_J2, r₁, r₂."""
        n_estimates = (grams.shape[1] - 2) // 2
        first, second = slice(0, n_estimates), slice(n_estimates, 2 * n_estimates)
        own, other = grams[:, first, first], grams[:, second, second]
        crossed = grams[:, first, second]
        power = 0.25 * (own + other + crossed + crossed.transpose(0, 2, 1))
        half = n_estimates // 2
        gaussians = power[:, :half, :half].sum(axis=(1, 2))
        scale = inverse(gaussians)
        to_1 = grams[:, :-2, -2]  # ⟨X, r₁⟩
        to_2 = grams[:, :-2, -1]
        truth = 0.5 * (to_2[:, first] + to_1[:, second])
        raw = grams[:, -2, -1]
        noise_1, noise_2 = grams[:, -2, -2] - raw, grams[:, -1, -1] - raw
        follow_1, follow_2 = to_1[:, first] - to_2[:, first], to_2[:, second] - to_1[:, second]
        both = follow_1[:, :, None] * follow_2[:, None, :]
        error = 0.25 * (own * noise_2[:, None, None] + other * noise_1[:, None, None] + both + both.transpose(0, 2, 1))
        matrix = scale[:, None, None]
        return _Sums(power * matrix, truth * scale[:, None], error * np.square(matrix))


def _solved(sums: _Sums, mask: Volume) -> tuple[Array, Curve, Curve]:
    """(K, J) weights, (K,) optimism of the fitted weights over ⟨M,M⟩, and (K,) share of the inversion.

    A shell's weights are those that are best over its neighbours, too. They follow the noise of the shell itself by

        E[δaᵀ δp] = tr(G⁻¹ Cov(δP, δp))

    with P the pooled and p the shell's own ⟨S,X⟩, and G the Gram matrix of the estimates used. The part along a is left
    out, because it only scales a map, which leaves a correlation as it was.
    """
    n_shells, n_estimates = sums.truth.shape
    pooling = _pooling(n_shells)
    one = np.eye(n_shells)
    of_mean, of_one, of_both = np.split(variance_of_mean(mask, np.concatenate([pooling, one, pooling + one])), 3)
    covariance = np.maximum(0.5 * (of_both - of_mean - of_one), 0)
    weights, optimism, share = np.zeros((n_shells, n_estimates)), np.zeros(n_shells), np.zeros(n_shells)
    for k in range(n_shells):
        gram, truth = np.tensordot(pooling[k], sums.power, axes=1), pooling[k] @ sums.truth
        gram += np.diag(_RIDGE * np.diag(gram) + np.finfo(np.float32).tiny)
        a = weights[k] = _non_negative(gram, truth)
        used = a > 0
        own = float(a @ sums.power[k] @ a)
        if not used.any() or own <= 0:
            continue
        error = sums.error[k][np.ix_(used, used)]
        free = np.trace(np.linalg.solve(gram[np.ix_(used, used)], error)) - a[used] @ error @ a[used] / (a @ gram @ a)
        optimism[k] = covariance[k] * max(float(free), 0.0) / own
        share[k] = np.clip(float(a[n_estimates // 2 :] @ sums.power[k][n_estimates // 2 :] @ a) / own, 0, 1)
    return weights, optimism, share


def _pooling(n_shells: int) -> Array:
    """(K, K) rows of equal weights of a shell and its neighbours."""
    distance = np.abs(np.subtract.outer(np.arange(n_shells), np.arange(n_shells)))
    near = (distance <= pooling_half_width(n_shells)).astype(np.float64)
    return near / near.sum(axis=1, keepdims=True)


def _non_negative(gram: Array, truth: Array) -> Array:
    """(J,) a ≥ 0 with the least aᵀ G a − 2 aᵀ p."""
    root = np.linalg.cholesky(gram)
    return optimize.nnls(root.T, np.linalg.solve(root, truth))[0]
