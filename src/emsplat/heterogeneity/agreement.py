"""The number of components, decided by images that had no part in finding them.

Components U of one half are tested on the images of the other half. Three things must not pass for a component:

- *How the image was taken.* The contrast, errors of the pose, and the absence of a particle change an image along the
  slices of its own half's consensus and their derivatives by the pose. All of these, in each of several bands of
  frequency, are projected out of image and components. No variance has to be known for that, and errors of poses that
  blurred the consensus are removed as well as those that did not.
- *The level of the noise.* Let h be the product of a component with what is left of an image. Without variability, h²
  has the expectation of its own diagonal, the sum of u² r² over the samples, whatever the noise of this image is. Only
  the products of different samples remain in ``h hᵀ − diagonal``. If latents vary with the covariance Λ, these products
  have the expectation A Λ A, where A is the Gram matrix of the projected components. For several images of a particle,
  h, the diagonal and A are sums over them.
- *Chance.* The strongest of several directions of noise is strong. Random signs and sizes given to the particles say
  how strong: they keep the noise of every image and remove what the particles have in common.

A real component has a variance near 1 in the other half, and one that was made of noise has 0, however similar the
noise of the two halves is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.observations import Observations
from emsplat.heterogeneity.posterior import inner_products, posterior
from emsplat.heterogeneity.subspace import Subspace, columns_of, parts_of, volumes_of

LEAST_VARIANCE = 0.3  # least variance of a component's latents in the other half; its own half finds 1
# Standard deviations above the strongest direction of noise. In sets of one state, at most 3 were found. Components
# that are noise nearly vanish in their own half, so that their variance in units of theirs does not hold them back.
LEAST_SIGNIFICANCE = 5.0
# This smaller variance is enough where the significance is beyond doubt: few images, or poses that a search has found,
# leave so much noise in a component that is real that the other half finds little of it.
SMALL_VARIANCE, BEYOND_DOUBT = 0.5 * LEAST_VARIANCE, 8.0
_BANDS = (5.5, 9.5, 15.5)  # shells between bands of frequency; they are the ends of the stages of the subspace
_DRAWS = 400  # draws of random weights for the particles
_RIDGE = 1e-6  # keeps columns that depend on each other apart
# Least mean information of an image on a latent of unit variance. Components that vanished while they were learnt, as
# noise makes them, have much less, and no variance in units of theirs would mean anything.
_LEAST_INFORMATION = 1e-4
_LEAST_FREEDOM = 0.05  # least share of a sample's noise that the projection leaves, where its power is used


@dataclass(frozen=True)
class Seen:
    """One half's components, tested on the other half's images and rotated so that their latents are uncorrelated."""

    # (K, K) columns: the rotated components in terms of the given ones, clearest first; in their own half, the latents
    # of each have unit variance
    basis: NDArray[np.float64]
    variance: NDArray[np.float64]  # (K,) variance of the latents along each, in units of what their own half finds
    significance: NDArray[np.float64]  # (K,) standard deviations above the strongest direction of noise

    @property
    def count(self) -> int:
        """Number of components, from the clearest on, that are beyond doubt."""
        least = np.where(self.significance > BEYOND_DOUBT, SMALL_VARIANCE, LEAST_VARIANCE)
        sure = (self.variance > least) & (self.significance > LEAST_SIGNIFICANCE)
        return len(sure) if sure.all() else int(np.argmin(sure))


@dataclass(frozen=True)
class Moments:
    """The products of n images with K components from which all else has been projected out."""

    score: NDArray[np.float64]  # (n, K) h
    diagonal: NDArray[np.float64]  # (n, K, K) sums of the products of each sample with itself
    gram: NDArray[np.float64]  # (n, K, K) A


def seen_by(
    space: Subspace,
    components: NDArray[np.float32],
    observations: Observations,
    particle: NDArray[np.int64] | None = None,
) -> Seen:
    """Test components on the images of the other half.

    Args:
        space: the space of the images' own half, whose consensus and share of junk are used.
        components: (K, D′, D′, D′) of the other half, scaled for latents of unit variance.
        particle: as in `seen_from`; copies of an image hold the same noise.
    """
    count = len(components)
    model = replace(space, components=components)
    nothing = np.where(np.arange(count + 6) < count, 0.0, model.variances())
    volumes = volumes_of(model)
    found, particles = [], []
    for part in parts_of(observations):
        columns = columns_of(volumes, part)
        particles.append(1 - posterior(inner_products(columns, part), nothing, model.contrast).junk)
        nuisance = _in_bands(np.concatenate([columns[..., :1], columns[..., count + 1 : -1]], axis=-1), part.samples)
        root = np.sqrt(part.weights * part.multiplicity)[:, :, None, None]
        data = np.divide(
            (part.spectra * part.multiplicity).view(np.float32).reshape(*columns.shape[:3], 1), root,
            out=np.zeros((*columns.shape[:3], 1), dtype=np.float32), where=root > 1e-6 * root.max(),
        )  # fmt: skip
        n = len(part)
        whitened = ((a * root).reshape(n, -1, a.shape[-1]) for a in (columns[..., 1 : count + 1], nuisance))
        found.append(moments(data.reshape(n, -1), *whitened))
    together = Moments(*(np.concatenate([getattr(m, name) for m in found]) for name in Moments.__dataclass_fields__))
    return seen_from(together, np.concatenate(particles), observations.particle, particle)


def _in_bands(columns: NDArray[np.float32], samples: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, m, 2, L × bands) the columns within each band of frequency, and 0 elsewhere."""
    band = np.searchsorted(_BANDS, np.sqrt((samples**2).sum(axis=1)))
    return np.concatenate([columns * (band == b)[:, None, None] for b in np.unique(band)], axis=-1)


def moments(data: NDArray[np.float32], components: NDArray[np.float32], nuisance: NDArray[np.float32]) -> Moments:
    """The moments of images.

    Args:
        data: (n, s) samples whose noise has equal variance and is independent; components: (n, s, K).
        nuisance: (n, s, q) columns along which an image may change without saying anything.
    """
    norm = np.sqrt((nuisance**2).sum(axis=1, keepdims=True))
    nuisance = nuisance / np.maximum(norm, 1e-30)
    across = nuisance.transpose(0, 2, 1)
    gram = np.matmul(across, nuisance).astype(np.float64) + _RIDGE * np.eye(nuisance.shape[2])
    dual = np.matmul(nuisance, np.linalg.inv(gram).astype(np.float32))
    columns = components - np.matmul(dual, np.matmul(across, components))
    left = data[:, :, None] - np.matmul(dual, np.matmul(across, data[:, :, None]))
    # The projection takes a share of each sample's noise, which the power of what is left must be corrected for.
    free = np.maximum(1 - (dual * nuisance).sum(axis=2, keepdims=True), _LEAST_FREEDOM)
    turned = columns.transpose(0, 2, 1)
    h = np.matmul(turned, left).astype(np.float64)
    diagonal = np.matmul(turned, columns * (left**2 / free)).astype(np.float64)
    return Moments(h[:, :, 0], diagonal, np.matmul(turned, columns).astype(np.float64))


def seen_from(
    found: Moments,
    weights: NDArray[np.float64],
    latent: NDArray[np.int64],
    particle: NDArray[np.int64] | None = None,
) -> Seen:
    """The variance of latents from the moments of images.

    Args:
        weights: (n,) probability that each image shows a particle.
        latent: (n,) images that share one latent share a number.
        particle: (n,) images whose noise may be the same share a number; if left out, those that share a latent.
    """
    score = _of_equals(weights[:, None] * found.score, latent)
    gram = _of_equals(weights[:, None, None] * found.gram, latent)
    # What the consensus lacks is the same in all images, and no variability.
    score = score - gram @ np.linalg.solve(gram.sum(axis=0), score.sum(axis=0))
    excess = score[:, :, None] * score[:, None, :]
    excess -= _of_equals(weights[:, None, None] ** 2 * found.diagonal, latent)
    count = gram.shape[1]
    operator = np.einsum("nab,ncd->acbd", gram, gram, optimize=True).reshape(count**2, count**2)
    covariance = _symmetric(np.linalg.solve(operator, excess.sum(axis=0).ravel()).reshape(count, count))
    # This is the metric in which every direction's variance is known equally well.
    values, vectors = np.linalg.eigh(gram.mean(axis=0))
    values = np.maximum(values, 1e-12 * values.max())
    root, inverse = vectors * np.sqrt(values), vectors / np.sqrt(values)
    power, turned = np.linalg.eigh(root.T @ covariance @ root)
    power, turned = power[::-1], turned[:, ::-1]
    claimed = np.einsum("kj,k,kj->j", turned, values, turned)
    left = (excess - gram @ covariance @ gram).reshape(len(excess), -1)
    if particle is not None:
        left = _of_equals(left, particle[_first_of_equals(latent)])
    strongest = _strongest_of_noise(left, operator, root @ turned)
    significance = (power - strongest.mean(axis=0)) / np.maximum(strongest.std(axis=0), 1e-30)
    variance = np.divide(power, claimed, out=np.zeros(count), where=claimed > _LEAST_INFORMATION)
    return Seen(inverse @ turned * np.sqrt(claimed), variance, significance)


def _strongest_of_noise(
    left: NDArray[np.float64], operator: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(draws, K) largest variance, among the directions from each one on, of images with random weights.

    The random weights have mean 0, so they keep the scatter of the images, which includes what a strong component adds
    to it, and no variance on average.

    Args: left: (n, K²) residuals of the particles to the fitted moments; directions: (K, K) columns.
    """
    count = len(directions)
    draws = np.random.default_rng(0).standard_normal((_DRAWS, len(left))) @ left
    found = np.linalg.solve(operator, draws.T).T.reshape(_DRAWS, count, count)
    found = _symmetric(directions.T @ found @ directions)
    return np.stack([np.linalg.eigvalsh(found[:, j:, j:])[:, -1] for j in range(count)], axis=1)


def _first_of_equals(number: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row of each number, in the order of `_of_equals`."""
    names, first = np.unique(number, return_index=True)
    return np.arange(len(number)) if len(names) == len(number) else first


def _of_equals(values: NDArray[np.float64], number: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sums over the rows of each number; where no two rows have one number, the rows as they are."""
    names, of_image = np.unique(number, return_inverse=True)
    if len(names) == len(number):
        return values
    out = np.zeros((len(names), *values.shape[1:]))
    np.add.at(out, of_image, values)
    return out


def _symmetric(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (matrices + matrices.swapaxes(-1, -2))
