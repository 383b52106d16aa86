"""One frame for the latents of both halves. The halves share only these few numbers from low-resolution maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.subspace import Subspace


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
