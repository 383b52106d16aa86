"""Gaussians on a grid of any pixel size and box."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.fourier.maps import fourier_resize
from emsplat.io.mrc import write_map
from emsplat.models.gaussians import Gaussians
from emsplat.splat.bandlimit import WIDENING

_REACH = 5.0  # σ, widened as for splatting, where a Gaussian ends on a grid
_BYTES_A_VOXEL = 21  # measured: density, its transform, and the factor that is divided out


def write_density(
    path: Path, gaussians: Gaussians, box_size: int, pixel_size: float, model_pixel_size: float, shift: float
) -> None:
    """Writes the density of `density_on_grid`, placed so that it overlays the run's map.

    Args:
        shift: Å from the first voxel of the run's map to the first of this one, on each axis.
    """
    write_map(path, density_on_grid(gaussians, box_size, pixel_size, model_pixel_size), pixel_size, [shift] * 3)


def density_on_grid(
    gaussians: Gaussians,
    box_size: int,
    pixel_size: float,
    model_pixel_size: float,
    memory_in_bytes: float | None = None,
) -> NDArray[np.float32]:
    """(D, D, D) density, the Gaussians' origin at voxel D//2, without the frequencies that the grid cannot hold.

    Gaussians narrower than 0.8 voxels alias. So a grid coarser than the one the model was made for is cropped, in
    Fourier space, from a finer one; and a box that cuts the model, in real space, from one that does not.

    Args:
        pixel_size, model_pixel_size: Å, of this grid and of the one the model was made for.
        memory_in_bytes: what the grid must fit into; by default, the memory of this machine.
    Raises:
        InputError: a grid that does not fit in memory.
    """
    finer = max(1, math.ceil(pixel_size / model_pixel_size - 0.01))
    voxel = pixel_size / finer
    near = _near(gaussians, 0.5 * box_size * pixel_size, voxel)
    if len(near) == 0:
        return np.zeros((box_size,) * 3, dtype=np.float32)
    reach = float((near.centres.abs().amax(dim=1) + _extent(near, voxel)).max())
    whole = max(box_size, 2 * math.ceil(reach / pixel_size) + 2)
    needed = _BYTES_A_VOXEL * (whole * finer) ** 3
    memory = memory_in_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise InputError(
            f"--box-size {box_size} with --pixel-size {pixel_size:.4g}: needs {needed / 1e9:.0f} GB, this machine has "
            f"{memory / 1e9:.0f}; take a smaller box or larger pixels"
        )
    density = near.voxelise(whole * finer, voxel)
    if finer > 1:
        density = fourier_resize(density, whole)
    first = whole // 2 - box_size // 2
    inner = slice(first, first + box_size)
    return np.ascontiguousarray(density[inner, inner, inner])


def _near(gaussians: Gaussians, half_edge: float, voxel: float) -> Gaussians:
    """Those that reach into a cube about the origin; Å."""
    rows = gaussians.centres.abs().amax(dim=1) < half_edge + _extent(gaussians, voxel)
    return gaussians.rows(rows)


def _extent(gaussians: Gaussians, voxel: float) -> torch.Tensor:
    """(K,) Å from the centre of each to where it ends on a grid of these voxels."""
    return _REACH * torch.sqrt(torch.exp(2 * gaussians.log_scales.amax(dim=1)) + WIDENING * voxel**2)
