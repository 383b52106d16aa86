"""Rounds of a generative topographic map: the likelihood of each image under the decoder's maps at many points.

``log p(y | z_p) = log ∫ p(c) exp(c v_p − ½ c² A_pp) dc`` follows from slices of V(z_p). With ``c ~ N(1, σ²)`` it is
``v − ½A + ½σ²(v − A)²/(1 + σ²A) − ½ log(1 + σ²A)``. With the points' populations it gives every image a posterior over
the points, and from that its latent, without assuming linearity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.posterior import ContrastPrior

_POSTERIORS = 4096  # images whose posteriors are computed at once in double precision
_MIXING_ROUNDS = 5  # rounds of EM for the points' populations


@dataclass(frozen=True)
class PointPosterior:
    """The posterior of n images over a set of points."""

    weights: NDArray[np.float32]  # (n, P) posterior; rows add up to 1
    # (n,) under the whole model, less that of an image without a particle; the mean over the images of a particle where
    # they share their latent
    log_likelihood: NDArray[np.float64]
    junk: NDArray[np.float64]  # (n,) probability that an image shows no particle
    contrast: NDArray[np.float64]  # (n,) mean, if the image shows a particle

    def mean(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, K) mean of each image's latent."""
        return self.weights.astype(np.float64) @ points

    def covariance(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, K, K) covariance of each image's latent."""
        mean = self.mean(points)
        square = self.weights.astype(np.float64) @ (points[:, :, None] * points[:, None, :]).reshape(len(points), -1)
        return square.reshape(len(mean), *2 * points.shape[1:]) - mean[:, :, None] * mean[:, None, :]


def point_posterior(
    power: NDArray[np.floating],
    overlap: NDArray[np.floating],
    populations: NDArray[np.float64],
    prior: ContrastPrior,
    particle: NDArray[np.int64] | None = None,
) -> tuple[PointPosterior, NDArray[np.float64]]:
    """Posteriors, and the populations (P,) that make the images most likely.

    Args:
        power, overlap: (n, P) from `PointMaps.inner`.
        particle: (n,) number of each image's particle, if images of one particle share their latent.
    """
    n, log_junk = len(power), float(np.log(prior.junk))
    if particle is not None and len(np.unique(particle)) < n:
        likelihood, contrast = _log_likelihood(power, overlap, prior), _contrast(power, overlap, prior)
        return _of_particles(likelihood, contrast, populations, log_junk, particle)
    blocks = [slice(first, first + _POSTERIORS) for first in range(0, n, _POSTERIORS)]
    # The weights hold the log-likelihoods, less that of the best point, until the last turn.
    found, top = PointPosterior(np.empty(power.shape, dtype=np.float32), *np.empty((3, n))), np.empty(n)
    for here in blocks:
        likelihood = _log_likelihood(power[here], overlap[here], prior)
        top[here] = likelihood.max(axis=1)
        found.weights[here] = likelihood - top[here, None]
    for turn in range(_MIXING_ROUNDS):
        mass = np.zeros(power.shape[1])
        log_populations = np.log(np.maximum(populations, 1e-12))
        for here in blocks:
            weights = np.exp(found.weights[here] + log_populations)
            total = weights.sum(axis=1)
            weights /= total[:, None]
            whole = np.logaddexp(top[here] + np.log(total), log_junk)
            junk = np.exp(log_junk - whole)
            mass += (1 - junk) @ weights
            if turn == _MIXING_ROUNDS - 1:
                found.weights[here], found.log_likelihood[here], found.junk[here] = weights, whole, junk
                found.contrast[here] = (weights * _contrast(power[here], overlap[here], prior)).sum(axis=1)
        populations = mass / max(float(mass.sum()), 1e-12)
    return found, populations


def _log_likelihood(
    power: NDArray[np.floating], overlap: NDArray[np.floating], prior: ContrastPrior
) -> NDArray[np.float64]:
    """(n, P) log-likelihood of each image at each point, with a normal contrast about 1 integrated out."""
    variance, slope = prior.sigma**2, np.subtract(overlap, power, dtype=np.float64)
    narrowed = 1 + variance * power.astype(np.float64)
    found = overlap - 0.5 * power + 0.5 * variance * slope**2 / narrowed - 0.5 * np.log(narrowed)
    return found + np.log1p(-prior.junk)


def _contrast(power: NDArray[np.floating], overlap: NDArray[np.floating], prior: ContrastPrior) -> NDArray[np.float64]:
    """(n, P) mean contrast of each image, given that it shows the map of each point."""
    variance = prior.sigma**2
    return 1 + variance * np.subtract(overlap, power, dtype=np.float64) / (1 + variance * power.astype(np.float64))


def _of_particles(
    likelihood: NDArray[np.float64],
    contrast: NDArray[np.float64],
    populations: NDArray[np.float64],
    log_junk: float,
    particle: NDArray[np.int64],
) -> tuple[PointPosterior, NDArray[np.float64]]:
    """Posteriors of particles, given to each of their images. Each image may be junk by itself.

    Args: likelihood, contrast: (n, P) of images that show a particle; log_junk: log probability of the others.
    """
    names, of_image = np.unique(particle, return_inverse=True)
    either = np.logaddexp(likelihood, log_junk)
    together = np.zeros((len(names), likelihood.shape[1]))
    np.add.at(together, of_image, either)
    junk_at_points = np.exp(log_junk - either)
    for _ in range(_MIXING_ROUNDS):
        log_weights = together + np.log(np.maximum(populations, 1e-12))
        top = log_weights.max(axis=1, keepdims=True)
        weights = np.exp(log_weights - top)
        total = weights.sum(axis=1, keepdims=True)
        weights /= total
        populations = weights.mean(axis=0)
    of_images = weights[of_image]
    evidence = (top + np.log(total))[:, 0] / np.bincount(of_image)
    found = PointPosterior(
        of_images.astype(np.float32), evidence[of_image], (of_images * junk_at_points).sum(axis=1),
        (of_images * contrast).sum(axis=1),
    )  # fmt: skip
    return found, populations


def shares_of_bins(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, G) soft shares of the points in the bins; a bin takes the points within about its width of its landmark."""
    apart = np.sqrt(((points[:, None] - centres) ** 2).sum(axis=2))
    if len(centres) == 1:
        return np.ones_like(apart)
    between = np.sqrt(((centres[:, None] - centres) ** 2).sum(axis=2))
    np.fill_diagonal(between, np.inf)
    width = 0.5 * np.median(between.min(axis=1))
    weights = np.exp(-0.5 * (apart**2 - apart.min(axis=1, keepdims=True) ** 2) / width**2)
    weights[weights < 0.05] = 0
    return weights / weights.sum(axis=1, keepdims=True)
