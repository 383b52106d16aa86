"""Values that vary in space, and planes that cut it. Places are in Å from the box centre, x y z."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Field:
    """A volume on a grid whose voxels have a place in the box."""

    values: NDArray[np.float32]  # (n, n, n) [z, y, x]
    start: float  # Å, where voxel 0 lies on every axis
    spacing: float  # Å

    def at(self, places: NDArray[np.floating]) -> NDArray[np.float32]:
        """(K,) values at (K, 3) places, linear between voxels; beyond the grid those of its border."""
        indices = (places[:, ::-1].T - self.start) / self.spacing
        return ndimage.map_coordinates(self.values, indices, order=1, mode="nearest")


@dataclass(frozen=True)
class Plane:
    """Cuts away what lies beyond it: of what is kept, ``normal · x <= offset``."""

    normal: tuple[float, float, float]  # of length 1
    offset: float  # Å

    def depth(self, places: NDArray[np.floating]) -> NDArray[np.floating]:
        """(K,) Å from each of (K, 3) places to the plane, positive where it is kept."""
        return self.offset - places @ np.array(self.normal)

    def depth_on(self, field: Field) -> NDArray[np.float32]:
        """(n, n, n) the same at the voxels of a grid."""
        n = len(field.values)
        along = (field.start + field.spacing * np.arange(n)).astype(np.float32)
        x, y, z = (np.float32(component) * along for component in self.normal)
        return np.float32(self.offset) - z[:, None, None] - y[None, :, None] - x
