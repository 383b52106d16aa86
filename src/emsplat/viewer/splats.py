"""Gaussians as splats: true centres and covariances; the opacity is what a beam would lose along a Gaussian's axis.

A splat viewer draws what covers what, a density map is a sum. Where each splat is faint, ``1 − Π (1 − α)`` is
``1 − exp(−Σ α)``: a monotonous picture of the line integral, as on an X-ray film.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from emsplat.models.gaussians import Gaussians
from emsplat.viewer.fields import Plane

_DEPTH = 4.0  # optical depth through the middle of the particle: a fiftieth of what is behind it shines through
_FAINTEST = 0.04  # opacity of a typical splat at least: browsers leave out what is below 0.01
_OPACITIES = (0.0, 0.99)


@dataclass(frozen=True)
class Look:
    """How splats are drawn."""

    size: float = 1.0  # factor on σ; the mass stays, so that small ones are more opaque
    opacity: float = 1.0  # factor on the optical depth
    hidden_share: float = 0.0  # of the Gaussians, those of least mass
    plane: Plane | None = None


@dataclass(frozen=True)
class Model:
    """Gaussians as arrays, thinned to what a browser can sort in time."""

    gaussians: Gaussians
    rows: NDArray[np.intp]  # (K,) their numbers among
    total: int  # so many, before any were left out

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
        """(K,) Å, the geometric mean of a Gaussian's three σ."""
        return self.gaussians.log_scales.mean(dim=1).exp().numpy()

    @cached_property
    def anisotropies(self) -> NDArray[np.float32]:
        """(K,) the widest σ over the narrowest."""
        scales = self.gaussians.log_scales
        return (scales.amax(dim=1) - scales.amin(dim=1)).exp().numpy()

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        """(K,) optical depth at the middle of each."""
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
        """(K,) those that are drawn."""
        kept = np.ones(len(self), dtype=bool)
        if look.hidden_share > 0:
            kept &= self.masses >= np.quantile(self.masses, look.hidden_share)
        if look.plane:
            kept &= look.plane.depth(self.centres) >= 0
        return kept

    def splats(self, look: Look, colours: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """What viser's ``set_gaussians`` takes, of those that are visible; (K, 3) colours in shares of 1."""
        kept = self.visible(look)
        opacities = 1 - np.exp(-look.opacity * self._columns[kept] / look.size**2)
        return {
            "centers": self.centres[kept],
            "covariances": self.covariances[kept] * np.float32(look.size**2),
            "rgbs": colours[kept],
            "opacities": opacities.clip(*_OPACITIES).astype(np.float32)[:, None],
        }


def thinned(gaussians: Gaussians, most: int, seed: int = 0) -> Model:
    """At most so many of the Gaussians, drawn by lot."""
    total = len(gaussians)
    if total <= most:
        return Model(gaussians, np.arange(total), total)
    rows = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    return Model(gaussians.rows(rows), rows, total)
