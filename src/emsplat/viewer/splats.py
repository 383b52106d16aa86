"""Gaussians as splats, with their true centres and covariances.

The opacity of a splat is the share of a beam that is lost along its axis. Splats cover each other, whereas a density
map is a sum. If each splat is faint, ``1 − Π (1 − α)`` is ``1 − exp(−Σ α)``, a monotonic function of the line integral,
as on an X-ray film.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from emsplat.models.gaussians import Gaussians
from emsplat.viewer.fields import Plane

_DEPTH = 4.0  # optical depth through the middle of the particle: a fiftieth of what is behind it shines through
_FAINTEST = 0.04  # smallest opacity of a typical splat, since browsers leave out what is below 0.01
_OPACITIES = (0.0, 0.99)


@dataclass(frozen=True)
class Look:
    """How splats are drawn."""

    size: float = 1.0  # factor on σ; the mass stays, so that smaller splats are more opaque
    opacity: float = 1.0  # factor on the optical depth
    hidden_share: float = 0.0  # share of the Gaussians, from the least mass on, that is hidden
    plane: Plane | None = None


@dataclass(frozen=True)
class Model:
    """Gaussians as arrays, thinned to what a browser can sort in time."""

    gaussians: Gaussians
    rows: NDArray[np.intp]  # (K,) numbers of these Gaussians in the full model
    total: int  # number of Gaussians in the full model

    @cached_property
    def centres(self) -> NDArray[np.float32]:
        """(K, 3) Å."""
        return self.gaussians.centres.numpy()

    @cached_property
    def covariances(self) -> NDArray[np.float32]:
        """(K, 3, 3) Å²."""
        return self.gaussians.covariances().numpy()

    @cached_property
    def masses(self) -> NDArray[np.float32]:
        """(K,)"""
        return self.gaussians.masses().numpy()

    @cached_property
    def sizes(self) -> NDArray[np.float32]:
        """(K,) geometric mean of the three σ of each Gaussian, in Å."""
        return self.gaussians.log_scales.mean(dim=1).exp().numpy()

    @cached_property
    def anisotropies(self) -> NDArray[np.float32]:
        """(K,) the widest σ over the narrowest."""
        scales = self.gaussians.log_scales
        return (scales.amax(dim=1) - scales.amin(dim=1)).exp().numpy()

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        """(K,) optical depth at the centre of each Gaussian."""
        masses = self.masses.astype(np.float64)
        footprints = 2 * np.pi * self.sizes.astype(np.float64) ** 2
        middle = np.average(self.centres, axis=0, weights=masses)
        spread = np.average(((self.centres - middle) ** 2).sum(axis=1), weights=masses)
        area = np.pi * max(5 / 3 * float(spread), 1.0)  # of a ball of this radius of gyration
        columns = masses / footprints * (_DEPTH * area / masses.sum())
        return columns * max(1.0, _FAINTEST / float(np.median(columns)))

    def __len__(self) -> int:
        return len(self.gaussians)

    def visible(self, look: Look) -> NDArray[np.bool_]:
        """(K,) whether each Gaussian is drawn."""
        kept = np.ones(len(self), dtype=bool)
        if look.hidden_share > 0:
            kept &= self.masses >= np.quantile(self.masses, look.hidden_share)
        if look.plane:
            kept &= look.plane.depth(self.centres) >= 0
        return kept

    def splats(self, look: Look, colours: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The visible Gaussians as viser's ``set_gaussians`` takes them; (K, 3) colours in shares of 1."""
        kept = self.visible(look)
        opacities = 1 - np.exp(-look.opacity * self._columns[kept] / look.size**2)
        return {
            "centers": self.centres[kept],
            "covariances": self.covariances[kept] * np.float32(look.size**2),
            "rgbs": colours[kept],
            "opacities": opacities.clip(*_OPACITIES).astype(np.float32)[:, None],
        }


def thinned(gaussians: Gaussians, most: int, seed: int = 0) -> Model:
    """All Gaussians, or a random selection of as many as `most`."""
    total = len(gaussians)
    if total <= most:
        return Model(gaussians, np.arange(total), total)
    rows = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    return Model(gaussians.rows(rows), rows, total)
