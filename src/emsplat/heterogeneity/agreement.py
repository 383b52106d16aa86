"""The number of components, decided by images that had no part in finding them.

Components U of one half are tested on the images of the other half. Let r be an image's residual to its own half's
consensus, and Σ the covariance of noise, contrast and pose errors. Then ``h = Uᵀ Σ⁻¹ r`` has the covariance
``A = Uᵀ Σ⁻¹ U`` if the images do not vary along U, and ``A + A Λ A`` if they do, where Λ is the covariance of their
latents. Therefore Λ follows from ``Σ_i (h hᵀ − A)`` over the images, without bias and with a known error. A real
component has a variance near 1 there, and one that was made of noise has 0, however similar the two halves' noise is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.observations import Observations
from emsplat.heterogeneity.posterior import inner_products, posterior
from emsplat.heterogeneity.subspace import Subspace, columns_of, parts_of, volumes_of

LEAST_VARIANCE = 0.3  # least variance of a component's latents in the other half; its own half finds 1
LEAST_SIGNIFICANCE = 6.0  # standard deviations: the strongest of several directions of noise reaches 3 to 4


@dataclass(frozen=True)
class Seen:
    """One half's components, tested on the other half's images and rotated so that their latents are uncorrelated."""

    basis: NDArray[np.float64]  # (K, K) columns: the rotated components in terms of the given ones, clearest first
    variance: NDArray[np.float64]  # (K,) variance of the latents along each, in units of what their own half finds
    significance: NDArray[np.float64]  # (K,) standard deviations above no variance

    @property
    def count(self) -> int:
        """Number of components, from the clearest on, that are beyond doubt."""
        sure = (self.variance > LEAST_VARIANCE) & (self.significance > LEAST_SIGNIFICANCE)
        return len(sure) if sure.all() else int(np.argmin(sure))


def seen_by(space: Subspace, components: NDArray[np.float32], observations: Observations) -> Seen:
    """Test components on the images of the other half.

    Args:
        space: the space of the images' own half, whose consensus, contrasts and pose errors are used.
        components: (K, D′, D′, D′) of the other half, scaled for latents of unit variance.
    """
    count = len(components)
    model = replace(space, components=components)
    nuisance = np.concatenate([[model.contrast.sigma**2], model.variances()[count:-1]])
    kept = nuisance > 1e-12
    of_nuisance = np.concatenate([[0], np.arange(count + 1, count + len(nuisance))])[kept]
    nothing = np.where(np.arange(count + 6) < count, 0.0, model.variances())
    volumes = volumes_of(model)
    scores, grams, particles = [], [], []
    for part in parts_of(observations):
        inner = inner_products(columns_of(volumes, part), part)
        particles.append(1 - posterior(inner, nothing, model.contrast).junk)
        h = inner.data - inner.gram[:, :, 0]
        u = slice(1, count + 1)
        across = inner.gram[:, u][:, :, of_nuisance]
        within = inner.gram[:, of_nuisance][:, :, of_nuisance] + np.diag(1 / nuisance[kept])
        solved = np.linalg.solve(within, across.transpose(0, 2, 1))  # (n, nuisance, K)
        scores.append(h[:, u] - np.einsum("njk,nj->nk", solved, h[:, of_nuisance]))
        grams.append(inner.gram[:, u, u] - across @ solved)
    return seen_from(np.concatenate(scores), np.concatenate(grams), np.concatenate(particles))


def seen_from(scores: NDArray[np.float64], grams: NDArray[np.float64], weights: NDArray[np.float64]) -> Seen:
    """The variance of latents from scores and their covariances.

    Args: scores: (n, K) h; grams: (n, K, K) A; weights: (n,) probability that each image shows a particle.
    """
    count = scores.shape[1]
    excess = np.einsum("n,nk,nl->kl", weights, scores, scores) - np.einsum("n,nkl->kl", weights, grams)
    operator = np.einsum("n,nab,ncd->acbd", weights, grams, grams, optimize=True).reshape(count**2, count**2)
    covariance = np.linalg.solve(operator, excess.ravel()).reshape(count, count)
    # This is the metric in which every direction's variance is known equally well.
    values, vectors = np.linalg.eigh(np.einsum("n,nkl->kl", weights, grams) / weights.sum())
    root = vectors * np.sqrt(np.maximum(values, 1e-12 * values.max()))
    inverse = vectors / np.sqrt(np.maximum(values, 1e-12 * values.max()))
    power, turned = np.linalg.eigh(root.T @ (0.5 * (covariance + covariance.T)) @ root)
    power, turned = power[::-1], turned[:, ::-1]
    claimed = np.einsum("kj,k,kj->j", turned, np.maximum(values, 1e-12 * values.max()), turned)
    error = _errors(scores, grams, weights, covariance, operator, root @ turned)
    return Seen(inverse @ turned, power / claimed, power / error)


def _errors(
    scores: NDArray[np.float64],
    grams: NDArray[np.float64],
    weights: NDArray[np.float64],
    covariance: NDArray[np.float64],
    operator: NDArray[np.float64],
    directions: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(K,) standard errors of ``uᵀ Λ u`` along the columns u, from the images' residuals to the fitted moments.

    A strong component makes the other ones uncertain, which the variance of noise alone would not show.
    """
    count = scores.shape[1]
    left = scores[:, :, None] * scores[:, None, :] - grams - grams @ covariance @ grams
    left = (weights[:, None, None] * left).reshape(len(scores), count**2)
    pairs = np.einsum("kj,lj->klj", directions, directions).reshape(count**2, -1)
    influence = left @ np.linalg.solve(operator, pairs)
    return np.sqrt((influence**2).sum(axis=0))
