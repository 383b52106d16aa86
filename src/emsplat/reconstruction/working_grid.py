"""The grid that the work is done on, no finer than asked for, and its cube, no larger than the particle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.particles.parts import can_split
from emsplat.particles.table import Particles
from emsplat.settings import ReconstructSettings

_BOX_WITHOUT_SPLIT = 96  # voxels; nothing can be measured of the fine detail of so few images
_MARGIN = 3  # voxels around the particle's sphere in which Gaussians may live


@dataclass(frozen=True)
class Grid:
    """The grid of the work, with lengths in voxels of the working box unless said otherwise."""

    full_box_size: int  # box of the images
    box_size: int
    pixel_size: float  # Å
    extent: int  # edge of the cube in which Gaussians live
    diameter_in_angstroms: float
    symmetry: NDArray[np.float64]  # (m, 3, 3)

    def text(self) -> str:
        """One line for the log."""
        return (
            f"the working box has {self.box_size} voxels of {self.pixel_size:.4g} Å, with density in a cube of "
            f"{self.extent * self.pixel_size:.0f} Å"
        )


def working_box(table: Particles, settings: ReconstructSettings) -> int:
    """The smallest box that holds the finest resolution asked for.

    If none is asked for, the box holds Nyquist's resolution, unless there are only some tens of images.
    """
    full = table.box_size
    if settings.max_resolution is None:
        return full if can_split(table, 1) or can_split(table, 2) else min(full, _BOX_WITHOUT_SPLIT)
    needed = 2 * full * table.pixel_size_in_angstroms / settings.max_resolution
    return min(full, max(16, scipy.fft.next_fast_len(int(np.ceil(needed)), real=True)))


def working_grid(table: Particles, diameter_in_angstroms: float, symmetry: NDArray[np.float64], box_size: int) -> Grid:
    """The working box, and the smallest cube that holds the particle."""
    full = table.box_size
    pixel_size = table.pixel_size_in_angstroms * full / box_size
    needed = int(np.ceil(diameter_in_angstroms / pixel_size)) + 2 * _MARGIN
    extent = min(scipy.fft.next_fast_len(needed, real=True), box_size)
    return Grid(full, box_size, pixel_size, extent, diameter_in_angstroms, symmetry)
