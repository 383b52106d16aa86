"""How good the latents, the decoder and the states of a run are, beside what true labels and true maps give."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import emsplat
from emsplat.fourier import maps
from emsplat.heterogeneity.gtm import point_posterior
from emsplat.heterogeneity.observations import Observations, observe
from emsplat.heterogeneity.point_maps import PointMaps
from emsplat.heterogeneity.posterior import ContrastPrior
from emsplat.heterogeneity.result import Heterogeneity
from emsplat.heterogeneity.subspace import stages
from emsplat.io.images import ImageSource
from emsplat.particles.parts import Part, PartWeights
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.validation.correlation import fsc
from heterogeneity_sets import Set, latent_error

_FITTED = 8  # largest number of conformations that are also fitted one by one
_MEDIAN = 0.6745  # median of the size of a normal number, in standard deviations
_FEWEST = 40  # images of a conformation below which it is not fitted


def score(volume: NDArray[np.float32], truth: NDArray[np.float32], mask: NDArray[np.float32]) -> float:
    """Mean FSC over shells 1 to D/2 − 1."""
    return float(np.nanmean(fsc(volume, truth, mask)[: len(mask) // 2 - 1]))


def decoded(found: Heterogeneity, image: int) -> NDArray[np.float32]:
    """The map at an image's latent, the average of both halves' decoders."""
    if found.halves is None:
        return found.consensus.map
    z = found.latents.mean[image]
    size, pixel = len(found.consensus.map), found.consensus.pixel_size_in_angstroms
    first, second = (half.decoder.at(z).voxelise(size, pixel) for half in found.halves)
    return 0.5 * (first + second)


def inversions(found: Heterogeneity, labels: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """The direct inversion of each conformation's images."""
    table = found.consensus.particles
    parts = PartWeights.one_part_each([Part(state=s) for s in range(labels.max() + 1)], labels)
    box = table.box_size
    settings = AccumulationSettings(box, box, found.consensus.preview.noise, np.eye(3)[None], 600 << 20)
    with ImageSource(table) as images:
        return [s.raw_map() for s in accumulate(table, images, parts, settings).values()]


def reconstructions(found: Heterogeneity, labels: NDArray[np.int64], seed: int) -> list[NDArray[np.float32]] | None:
    """What `emsplat reconstruct` makes of each conformation's images; None if there are too many or too few."""
    counts = np.bincount(labels)
    if len(counts) > _FITTED or counts.min() < _FEWEST:
        return None
    table = found.consensus.particles
    settings = ReconstructSettings(seed=seed)
    return [
        emsplat.reconstruct(table.select(np.flatnonzero(labels == s)), settings, Reporter()).map
        for s in range(len(counts))
    ]


def error_of_latents(one: Set, found: Heterogeneity, labels: NDArray[np.int64], true: NDArray[np.float64]) -> float:
    """The error of a quadratic regression on one half's latents among the images of the other half."""
    return error_of_regression(one, found.latents.mean, found.latents.half, labels, true)


def error_of_regression(
    one: Set, z: NDArray[np.float64], half: NDArray[np.int8], labels: NDArray[np.int64], true: NDArray[np.float64]
) -> float:
    """The error of a regression on the latents of any program. Args: z: (N, K) latents; half: (N,) 1 or 2."""
    i, j = np.triu_indices(z.shape[1])
    features = np.concatenate([np.ones((len(z), 1)), z, z[:, i] * z[:, j]], axis=1)
    errors = []
    for number in (1, 2):
        learnt = half == number
        solved = np.linalg.lstsq(features[learnt], true[labels[learnt]], rcond=None)[0]
        errors.append(latent_error(one, features[~learnt] @ solved, labels[~learnt], true))
    return float(np.mean(errors))


def error_of_true_maps(
    one: Set, found: Heterogeneity, labels: NDArray[np.int64], truths: list[NDArray[np.float32]],
    true: NDArray[np.float64],
) -> float:  # fmt: skip
    """The error that remains if the maps are known.

    Where conformations are discrete, it is that of the posterior means under the true maps and populations. Of
    continuous ones the few maps lie so far apart that they would be told apart too well. There, the error follows from
    the Cramér-Rao bound.
    """
    table, limit = found.consensus.particles, found.consensus.validation.limit_shell
    stage = stages(table.box_size, max(2, min(limit, 23, table.box_size // 2 - 1)))[-1]
    rows = np.arange(len(table))
    with ImageSource(table) as images:
        observed = observe(table, images, rows, found.consensus.preview.noise, stage.box_size, stage.limit_shell)
    scale = _scale(found, truths, labels)
    volumes = [scale * maps.fourier_resize(truth, stage.box_size) for truth in truths]
    if one.kind != "discrete":
        return _bound(one, observed, volumes, labels, true)
    power, overlap = PointMaps.of_volumes(volumes).inner(observed)
    populations = np.bincount(labels, minlength=len(truths)) / len(labels)
    posterior, _ = point_posterior(power, overlap, populations, ContrastPrior(sigma=0.02, junk=1e-4))
    return latent_error(one, posterior.weights @ true, labels, true)


def _bound(
    one: Set, observed: Observations, volumes: list[NDArray[np.float32]], labels: NDArray[np.int64],
    true: NDArray[np.float64],
) -> float:  # fmt: skip
    """The error of the best estimate, in the units of `latent_error`.

    On a circle it is that of an unbiased estimate; of two coordinates, their prior of unit variance is known as well.
    """
    slopes = _on_a_circle(volumes) if one.kind == "circle" else _by_regression(volumes, true)
    errors = []
    for label, of_label in enumerate(slopes):
        part = observed.part(np.flatnonzero(labels == label))
        power, _ = PointMaps.of_volumes([*of_label, sum(of_label)]).inner(part)
        if one.kind == "circle":
            errors.append(np.rad2deg(_MEDIAN / np.sqrt(power[:, 0])))
            continue
        information = np.eye(2) + np.zeros((len(part), 2, 2))  # of the prior
        information[:, 0, 0] += power[:, 0]
        information[:, 1, 1] += power[:, 1]
        information[:, 0, 1] = information[:, 1, 0] = 0.5 * (power[:, 2] - power[:, 0] - power[:, 1])
        errors.append(np.einsum("nkk->n", np.linalg.inv(information)) / 2)
    every = np.concatenate(errors)
    return float(np.median(every)) if one.kind == "circle" else float(100 * np.sqrt(every.mean()))


def _on_a_circle(volumes: list[NDArray[np.float32]]) -> list[list[NDArray[np.float32]]]:
    """The derivative of each map by the angle in radians, from the Fourier series of equally spaced maps."""
    count = len(volumes)
    series = np.fft.rfft(np.stack(volumes), axis=0)
    order = np.arange(len(series)) * (np.arange(len(series)) < count / 2)
    derived = np.fft.irfft(1j * order[:, None, None, None] * series, count, axis=0).astype(np.float32)
    return [[one] for one in derived]


def _by_regression(volumes: list[NDArray[np.float32]], true: NDArray[np.float64]) -> list[list[NDArray[np.float32]]]:
    """The derivatives of each map by both coordinates, from a regression of third order of the maps on them."""
    powers = [(i, j) for i in range(4) for j in range(4 - i)]
    x, y = true.T
    features = np.stack([x**i * y**j for i, j in powers], axis=1)
    solved = np.linalg.lstsq(features, np.stack(volumes).reshape(len(volumes), -1), rcond=None)[0]
    shape = volumes[0].shape
    by_x = np.stack([i * x ** max(i - 1, 0) * y**j for i, j in powers], axis=1) @ solved
    by_y = np.stack([j * x**i * y ** max(j - 1, 0) for i, j in powers], axis=1) @ solved
    return [
        [a.reshape(shape).astype(np.float32), b.reshape(shape).astype(np.float32)]
        for a, b in zip(by_x, by_y, strict=True)
    ]


def _scale(found: Heterogeneity, truths: list[NDArray[np.float32]], labels: NDArray[np.int64]) -> np.float32:
    """The scale of the images, as their direct inversion has it, by the scale of the true maps."""
    mean = sum(np.mean(labels == s) * truth for s, truth in enumerate(truths)) * found.consensus.mask
    raw = 0.5 * (found.consensus.halves[0].raw + found.consensus.halves[1].raw)
    return np.float32((raw * mean).sum() / (mean * mean).sum())


def honesty(
    found: Heterogeneity, labels: NDArray[np.int64], truths: list[NDArray[np.float32]]
) -> list[tuple[float, float]]:
    """Of each state, the mean of c_map over the measurable shells, and the mean of the true correlation.

    The truth of a state is the mean of the true maps of the images that are most likely in it.
    """
    pairs = []
    for number, state in enumerate(found.states):
        shown = labels[found.latents.state == number]
        limit = state.validation.limit_shell
        if limit == 0 or len(shown) == 0:
            continue
        shares = np.bincount(shown, minlength=len(truths)) / len(shown)
        mean = sum(share * truth for share, truth in zip(shares, truths, strict=True))
        curve = fsc(0.5 * (state.half_maps[0] + state.half_maps[1]), np.float32(mean), state.mask)
        pairs.append((float(np.nanmean(state.validation.c_map[:limit])), float(np.nanmean(curve[:limit]))))
    return pairs
