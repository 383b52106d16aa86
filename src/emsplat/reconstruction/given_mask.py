"""The mask that the user gives, in place of the one that is made from the data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.fourier import maps
from emsplat.io.masks import GridOfMap, read_mask
from emsplat.particles.table import Particles
from emsplat.runtime.reporting import Reporter


@dataclass(frozen=True)
class GivenMask:
    """A mask on the grid of the particles."""

    path: Path
    values: NDArray[np.float32]  # (D, D, D) between 0 and 1
    diameter_in_angstroms: float  # of the sphere about the box centre that holds it

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the values."""
        return hashlib.sha256(np.ascontiguousarray(self.values).tobytes()).hexdigest()[:16]

    def in_box(self, box_size: int) -> NDArray[np.float32]:
        """(d, d, d) the mask with another number of voxels in the same field of view."""
        if box_size == len(self.values):
            return self.values
        return np.clip(maps.fourier_resize(self.values, box_size), 0, 1)


def read_given_mask(path: Path, table: Particles, reporter: Reporter) -> GivenMask:
    """The mask of a file on the grid of the particles; InputError as for `read_mask`, or if nothing of it is left."""
    pixel_size = table.pixel_size_in_angstroms
    values, line = read_mask(path, GridOfMap(table.box_size, pixel_size))
    inside = maps.distance_from_origin(table.box_size)[values > 0.5]
    if len(inside) == 0:
        raise InputError(
            f"{path}: no voxel above ½ on the grid of the particles, voxels of {pixel_size:.4g} Å; give a larger mask"
        )
    mask = GivenMask(path, values, float(2 * inside.max() * pixel_size))
    if line:
        reporter.line(line)
    volume = float(values.sum(dtype=np.float64)) * pixel_size**3
    reporter.line(
        f"the map is combined and judged within {path}: {volume / 1e3:,.0f} nm³ within a sphere of "
        f"{mask.diameter_in_angstroms:.0f} Å about the box centre"
    )
    return mask
