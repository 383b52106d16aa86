"""Latents of images under a linear model, with the contrast integrated out.

``y = c · C P (V₀ + Σ_k z_k U_k) + noise`` with ``z ~ N(0, S)`` and a contrast c. For a given c the posterior of z is
normal: precision ``S⁻¹ + c² A_zz``, mean ``(S⁻¹ + c² A_zz)⁻¹ (c v_z − c² A_z0)``, where ``A_kl = ⟨F_k, C²W² F_l⟩`` and
``v_k = ⟨F_k, CW² y⟩`` are sums over the image's samples of the slices F of V₀ and U. No more is needed of an image.
c runs over a grid of values, with a normal prior about 1 and a share of images with contrast 0, without a particle.

Images of one particle, such as its tilts, share z. What each image says of z alone is taken as a normal factor; the
product of the other images' factors with the prior of z is then the prior for each image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.observations import Observations

CONTRASTS = np.append(0.0, np.linspace(0.3, 1.9, 17))  # contrast without a particle, then those with one
BETWEEN_CONTRASTS = 0.05  # standard deviation of a contrast about the grid's value, as a share of this
_LEAST_SIGMA, _LARGEST_SIGMA = 0.02, 0.4
_LEAST_JUNK, _MOST_JUNK = 1e-4, 0.6
_LARGEST_CHANGE = 4.0  # largest factor by which a step changes the variance of the contrast


@dataclass(frozen=True)
class ContrastPrior:
    """The prior of an image's contrast, learnt from all images."""

    sigma: float = 0.1  # standard deviation about 1
    junk: float = 0.02  # share of images that show no particle

    def log(self) -> NDArray[np.float64]:
        """(grid,) log prior probability of every contrast."""
        log = -0.5 * ((CONTRASTS[1:] - 1) / self.sigma) ** 2
        log += np.log1p(-self.junk) - np.log(np.exp(log).sum())
        return np.append(np.log(self.junk), log)


@dataclass(frozen=True)
class Inner:
    """Inner products of n images with the columns of a linear model, of which column 0 is V₀."""

    gram: NDArray[np.float64]  # (n, L, L) A
    data: NDArray[np.float64]  # (n, L) v


def inner_products(columns: NDArray[np.float32], observations: Observations) -> Inner:
    """The inner products. Args: columns: (n, m, 2, L) slices of the columns at the observations' samples."""
    n, m, _, count = columns.shape
    twice = observations.multiplicity
    root = np.sqrt(observations.weights * twice)
    scaled = (columns * root[:, :, None, None]).reshape(n, 2 * m, count)
    spectra = (observations.spectra * twice).view(np.float32).reshape(n, 1, 2 * m)
    gram = np.matmul(scaled.transpose(0, 2, 1), scaled)
    data = np.matmul(spectra, columns.reshape(n, 2 * m, count))[:, 0]
    return Inner(gram.astype(np.float64), data.astype(np.float64))


@dataclass(frozen=True)
class Posterior:
    """Moments of the latents of n images, with the contrast integrated out."""

    mean: NDArray[np.float64]  # (n, K) E[z]
    covariance: NDArray[np.float64]  # (n, K, K)
    contrast: NDArray[np.float64]  # (n,) E[c], if the image shows a particle
    junk: NDArray[np.float64]  # (n,) probability that it shows none
    log_evidence: NDArray[np.float64]  # (n,) log p(y), less that of an image without a particle
    c: NDArray[np.float64]  # (n,) E[c], 0 for junk
    cc: NDArray[np.float64]  # (n,) E[c²]
    cz: NDArray[np.float64]  # (n, K) E[c z]
    ccz: NDArray[np.float64]  # (n, K) E[c² z]
    cczz: NDArray[np.float64]  # (n, K, K) E[c² z zᵀ]
    squared_contrast: NDArray[np.float64]  # (n,) E[(c − 1)²] given a particle, times the probability of one

    @property
    def second_moment(self) -> NDArray[np.float64]:
        """(n, K, K) E[z zᵀ]."""
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]


class ContrastStep:
    """The prior of the contrast by a step of Fisher's scoring from the posteriors of images.

    EM would stay near its start for very long where one image says little of its contrast.
    """

    def __init__(self, prior: ContrastPrior) -> None:
        self.before = prior.sigma**2 + BETWEEN_CONTRASTS**2  # a contrast varies about the grid's values as well
        self.number, self.junk, self.excess, self.information = 0, 0.0, 0.0, 0.0

    def add(self, found: Posterior) -> None:
        """Add images: E[(c − 1)²] less its prior value, and the square of the share of it that an image determines."""
        particle, variance = 1 - found.junk, self.before
        left = found.squared_contrast / np.maximum(particle, 1e-12) - (found.contrast - 1) ** 2
        self.number += len(particle)
        self.junk += float(found.junk.sum())
        self.excess += float((found.squared_contrast - particle * variance).sum())
        self.information += float((particle * (1 - np.clip(left / variance, 0, 1)) ** 2).sum())

    def prior(self) -> ContrastPrior:
        """The prior after the step."""
        variance = self.before + self.excess / max(self.information, 1e-9)
        variance = np.clip(variance, self.before / _LARGEST_CHANGE, self.before * _LARGEST_CHANGE)
        sigma = np.sqrt(max(variance - BETWEEN_CONTRASTS**2, 0))
        return ContrastPrior(
            float(np.clip(sigma, _LEAST_SIGMA, _LARGEST_SIGMA)),
            float(np.clip(self.junk / self.number, _LEAST_JUNK, _MOST_JUNK)),
        )


def posterior(inner: Inner, variances: NDArray[np.float64], prior: ContrastPrior) -> Posterior:
    """The latents of images.

    Args:
        inner: inner products whose last column is V₀ again, for the difference of the contrast from the grid's value.
        variances: (K,) variance of the prior of each latent; columns with variance 0 are left out.
    """
    scale = np.sqrt(variances)
    gram = inner.gram[:, 1:, 1:] * scale[:, None] * scale
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0)
    p = np.einsum("nkj,nk->nj", vectors, inner.data[:, 1:] * scale)
    q = np.einsum("nkj,nk->nj", vectors, inner.gram[:, 1:, 0] * scale)
    c = CONTRASTS
    spread = 1 / (1 + c[:, None] ** 2 * values[:, None, :])  # (n, c, K)
    h = c[:, None] * p[:, None, :] - c[:, None] ** 2 * q[:, None, :]
    means = h * spread
    log = (
        c * inner.data[:, :1]
        - 0.5 * c**2 * inner.gram[:, 0, :1]
        + 0.5 * (h * means).sum(axis=2)
        + 0.5 * np.log(spread).sum(axis=2)
        + prior.log()
    )
    top = log.max(axis=1, keepdims=True)
    weights = np.exp(log - top)
    total = weights.sum(axis=1, keepdims=True)
    weights /= total
    basis = vectors * scale[None, :, None]  # from the eigenvectors' coordinates to the latents

    def mixed(power: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """E[cᵖ z] and E[cᵖ z zᵀ]."""
        w = weights * c**power
        mean = np.einsum("nc,ncj->nj", w, means)
        square = np.einsum("nc,ncj,nck->njk", w, means, means, optimize=True)
        square[:, np.arange(len(scale)), np.arange(len(scale))] += np.einsum("nc,ncj->nj", w, spread)
        return np.einsum("nkj,nj->nk", basis, mean), basis @ square @ basis.transpose(0, 2, 1)

    mean, square = mixed(0)
    cz, _ = mixed(1)
    ccz, cczz = mixed(2)
    covariance = square - mean[:, :, None] * mean[:, None, :]
    particle = weights[:, 1:]
    junk = weights[:, 0]
    contrast = (particle @ c[1:] + cz[:, -1]) / np.maximum(1 - junk, 1e-12)
    squared = particle @ (c[1:] - 1) ** 2 + 2 * (ccz[:, -1] - cz[:, -1]) + cczz[:, -1, -1]
    return Posterior(
        mean, covariance, contrast, junk, (top + np.log(total))[:, 0], weights @ c, weights @ c**2, cz, ccz, cczz,
        np.maximum(squared, 0),
    )  # fmt: skip


def posterior_of_particles(
    inner: Inner, variances: NDArray[np.float64], prior: ContrastPrior, particle: NDArray[np.int64], count: int
) -> Posterior:
    """The latents of images, where the images of a particle share the first latents.

    Args:
        inner, variances: as in `posterior`; the shared latents have the variance 1.
        particle: (n,) number of each image's particle, all of whose images are here; count: number of shared latents.
    """
    alone = posterior(inner, variances, prior)
    names, of_image = np.unique(particle, return_inverse=True)
    if len(names) == len(particle) or count == 0:
        return alone
    precision = np.linalg.inv(alone.covariance[:, :count, :count])
    shift = np.einsum("nkl,nl->nk", precision, alone.mean[:, :count])
    values, vectors = np.linalg.eigh(precision - np.eye(count))
    factor = vectors * np.maximum(values, 0)[:, None, :] @ vectors.transpose(0, 2, 1)
    all_factors, all_shifts = (np.zeros((len(names), *a.shape[1:])) for a in (factor, shift))
    np.add.at(all_factors, of_image, factor)
    np.add.at(all_shifts, of_image, shift)
    covariance = np.linalg.inv(np.eye(count) + all_factors[of_image] - factor)
    mean = np.einsum("nkl,nl->nk", covariance, all_shifts[of_image] - shift)
    return _with_prior(inner, variances, prior, mean, np.linalg.cholesky(covariance))


def _with_prior(
    inner: Inner,
    variances: NDArray[np.float64],
    prior: ContrastPrior,
    mean: NDArray[np.float64],
    root: NDArray[np.float64],
) -> Posterior:
    """The latents of images of which each has a prior of its own.

    Coefficients x of the columns are x = t + T x′, where x′ has the prior that `posterior` asks for.

    Args: mean: (n, k) of the first latents; root: (n, k, k) Cholesky factor of their covariance.
    """
    n, k = mean.shape
    t = np.zeros((n, inner.gram.shape[1] - 1))
    t[:, :k] = mean
    matrix = np.tile(np.eye(t.shape[1]), (n, 1, 1))
    matrix[:, :k, :k] = root
    matrix[:, :k, -1] = mean  # a contrast off the grid scales all of the map
    whole = np.zeros_like(inner.gram)
    whole[:, 0, 0] = 1
    whole[:, 1:, 0], whole[:, 1:, 1:] = t, matrix
    turned = whole.transpose(0, 2, 1)
    found = posterior(Inner(turned @ inner.gram @ whole, np.einsum("nlk,nl->nk", whole, inner.data)), variances, prior)

    def moved(first: NDArray[np.float64], weight: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
        return np.einsum("nkl,nl->nk", matrix, first) + np.multiply(weight, t.T).T

    across = moved(found.ccz, 0.0)[:, :, None] * t[:, None, :]
    cczz = matrix @ found.cczz @ matrix.transpose(0, 2, 1) + across + across.transpose(0, 2, 1)
    cczz += found.cc[:, None, None] * t[:, :, None] * t[:, None, :]
    return replace(
        found,
        mean=moved(found.mean),
        covariance=matrix @ found.covariance @ matrix.transpose(0, 2, 1),
        cz=moved(found.cz, found.c),
        ccz=moved(found.ccz, found.cc),
        cczz=cczz,
    )
