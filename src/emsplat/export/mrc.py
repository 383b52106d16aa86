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

_CUTOFF = 5.0  # σ, widened as for splatting, at which a Gaussian ends on a grid
_BYTES_PER_VOXEL = 21  # as measured: density, its transform, and the factor that is divided out


def write_density(
    path: Path, gaussians: Gaussians, box_size: int, pixel_size: float, model_pixel_size: float, shift: float
) -> None:
    """Write the density of `density_on_grid`, placed so that it overlays the run's map.

    Args:
        shift: distance in Å from the first voxel of the run's map to the first voxel of this map, on each axis.
    """
    write_map(path, density_on_grid(gaussians, box_size, pixel_size, model_pixel_size), pixel_size, [shift] * 3)


def density_on_grid(
    gaussians: Gaussians,
    box_size: int,
    pixel_size: float,
    model_pixel_size: float,
    memory_in_bytes: float | None = None,
) -> NDArray[np.float32]:
    """(D, D, D) density without the frequencies that the grid cannot hold; the origin is at voxel D//2.

    Gaussians narrower than 0.8 voxels alias. A grid coarser than the one that the model was made for is therefore
    cropped from a finer grid in Fourier space. A box that cuts the model is cropped from a larger box in real space.

    Args:
        pixel_size, model_pixel_size: pixel sizes in Å of this grid and of the grid that the model was made for.
        memory_in_bytes: memory that the grid must fit into; by default, that of this machine.
    Raises:
        InputError: the grid does not fit in memory.
    """
    finer = max(1, math.ceil(pixel_size / model_pixel_size - 0.01))
    voxel = pixel_size / finer
    near = _near(gaussians, 0.5 * box_size * pixel_size, voxel)
    if len(near) == 0:
        return np.zeros((box_size,) * 3, dtype=np.float32)
    extent = float((near.centres.abs().amax(dim=1) + _extent(near, voxel)).max())
    whole = max(box_size, 2 * math.ceil(extent / pixel_size) + 2)
    needed = _BYTES_PER_VOXEL * (whole * finer) ** 3
    memory = memory_in_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise InputError(
            f"--box-size {box_size} with --pixel-size {pixel_size:.4g}: needs {needed / 1e9:.0f} GB of memory, and "
            f"this machine has {memory / 1e9:.0f} GB; choose a smaller box or larger pixels"
        )
    density = near.voxelise(whole * finer, voxel)
    if finer > 1:
        density = fourier_resize(density, whole)
    first = whole // 2 - box_size // 2
    inner = slice(first, first + box_size)
    return np.ascontiguousarray(density[inner, inner, inner])


def _near(gaussians: Gaussians, half_edge: float, voxel: float) -> Gaussians:
    """The Gaussians that extend into a cube about the origin; lengths in Å."""
    rows = gaussians.centres.abs().amax(dim=1) < half_edge + _extent(gaussians, voxel)
    return gaussians.rows(rows)


def _extent(gaussians: Gaussians, voxel: float) -> torch.Tensor:
    """(K,) radius in Å at which each Gaussian ends on a grid of these voxels."""
    return _CUTOFF * torch.sqrt(torch.exp(2 * gaussians.log_scales.amax(dim=1)) + WIDENING * voxel**2)
