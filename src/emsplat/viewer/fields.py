"""Values that vary in space, and planes that cut space. Places are x y z in Å from the box centre."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Field:
    """A volume on a grid, with the place of its voxels in the box."""

    values: NDArray[np.float32]  # (n, n, n) [z, y, x]
    start: float  # coordinate of voxel 0 in Å on every axis
    spacing: float  # distance between voxels in Å

    def at(self, places: NDArray[np.floating]) -> NDArray[np.float32]:
        """(K,) values at (K, 3) places, interpolated linearly; places beyond the grid take the values of its border."""
        indices = (places[:, ::-1].T - self.start) / self.spacing
        return ndimage.map_coordinates(self.values, indices, order=1, mode="nearest")


@dataclass(frozen=True)
class Plane:
    """A plane that cuts away what lies beyond it; places with ``normal · x <= offset`` are kept."""

    normal: tuple[float, float, float]  # of length 1
    offset: float  # Å

    def depth(self, places: NDArray[np.floating]) -> NDArray[np.floating]:
        """(K,) distance in Å from each of (K, 3) places to the plane, positive for places that are kept."""
        return self.offset - places @ np.array(self.normal)

    def depth_on(self, field: Field) -> NDArray[np.float32]:
        """(n, n, n) the depth of the voxels of a grid."""
        n = len(field.values)
        along = (field.start + field.spacing * np.arange(n)).astype(np.float32)
        x, y, z = (np.float32(component) * along for component in self.normal)
        return np.float32(self.offset) - z[:, None, None] - y[None, :, None] - x
