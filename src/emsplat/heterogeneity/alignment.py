"""One frame for the latents of both halves. The halves share only these few numbers from low-resolution maps.

The frames of two decoders drift apart while they are fitted in rounds, each to its own half: nothing ties the point at
which one of them shows a conformation to the point at which the other does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.point_maps import spectra_at
from emsplat.heterogeneity.subspace import Subspace

_ALIKE_UP_TO = 10  # last shell in which the decoders of the halves are compared
_ITERATIONS = 4
_DIFFERENCE = 0.05  # of latents, for derivatives
_STIFFNESS = 0.1  # what holds a place back, by the mean power that a latent of unit variance adds to a map


@dataclass(frozen=True)
class Alignment:
    """The transformation of half 2's latents into half 1's frame, ``z₁ = M z₂``."""

    matrix: NDArray[np.float64]  # (K, K) M, orthogonal

    def mean(self, latents: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, K) transformed latents."""
        return latents @ self.matrix.T

    def covariance(self, covariances: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, K, K) transformed covariances."""
        return self.matrix @ covariances @ self.matrix.T


def aligned(first: Subspace, second: Subspace) -> Alignment:
    """The rotation of latents that makes ``U z`` of both halves most alike, in the least-squares sense.

    Latents of either half have mean 0 and unit second moments over the same population, so only a rotation is
    free. A regression of one half's components on the other's would shrink components on which the halves differ.
    """
    u1, u2 = (space.components.reshape(space.count, -1).astype(np.float64) for space in (first, second))
    left, _, right = np.linalg.svd(u1 @ u2.T)
    return Alignment(left @ right)


def canonical_correlations(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """(K,) cosines of the angles between two subspaces of maps, (K, D, D, D) each, largest first."""
    q1, q2 = (np.linalg.qr(u.reshape(len(u), -1).T.astype(np.float64))[0] for u in (first, second))
    return np.linalg.svd(q1.T @ q2, compute_uv=False)


def places_alike(
    frame: Decoder,
    decoder: Decoder,
    places: NDArray[np.float64],
    shares: NDArray[np.float64],
    box_size: int,
    pixel_size: float,
    limit_shell: int,
) -> NDArray[np.float64]:
    """The points near the given ones at which one decoder shows what the other shows at those, at low resolution.

    They are found by Gauss-Newton steps on the squared difference of the maps and on how far the points have moved.

    Args:
        frame: the decoder whose points are sought.
        decoder: the other one, with its (G, K) places and their (G,) shares of the images.
        box_size: D of the images, with this pixel size in Å.
    """
    limit = min(limit_shell, _ALIKE_UP_TO)
    box = min(box_size, scipy.fft.next_fast_len(2 * limit + 2, real=True))
    radius = maps.radius(box)
    within = (radius > 0) & (radius <= limit)

    def shown(of: Decoder, points: NDArray[np.float64]) -> NDArray[np.float64]:
        spectra = spectra_at(of, points, box_size, box, pixel_size)
        return np.stack([spectrum[within].view(np.float32) for spectrum in spectra]).astype(np.float64)

    aim, now, best = shown(decoder, places), places.copy(), places.copy()
    least, stiffness = np.full(len(places), np.inf), 0.0
    for _ in range(_ITERATIONS):
        left = shown(frame, now)
        slopes = np.stack([shown(frame, now + _DIFFERENCE * e) - left for e in np.eye(places.shape[1])]) / _DIFFERENCE
        left = aim - left
        power = np.einsum("kgm,lgm->gkl", slopes, slopes, optimize=True)
        stiffness = stiffness or max(_STIFFNESS * float(shares @ np.einsum("gkk->gk", power).mean(axis=1)), 1e-30)
        cost = (left**2).sum(axis=1) + stiffness * ((now - places) ** 2).sum(axis=1)
        better = cost < least
        best[better], least = now[better], np.minimum(cost, least)
        downhill = np.einsum("kgm,gm->gk", slopes, left, optimize=True) - stiffness * (now - places)
        now = now + np.linalg.solve(power + stiffness * np.eye(places.shape[1]), downhill[..., None])[..., 0]
    return best
