"""The map of a search while it grows, as Gaussians on its densest voxels, which the viewer of a fit can show."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.models.densification import round_gaussians
from emsplat.models.parameters import Parameters
from emsplat.runtime.reporting import Reporter

_MOST = 3000  # Gaussians that are shown
_LEAST = 0.15  # density that is shown, over the largest one
_SIGMA = 0.9  # voxels


def gaussians_of(map_: NDArray[np.float32]) -> Parameters:
    """Round Gaussians on the densest voxels of a map (N, N, N), in units of its voxels, with their densities as masses.

    The first map is taken if there are those of several classes (K, N, N, N).
    """
    density = map_[0] if map_.ndim == 4 else map_
    flat = np.maximum(density.ravel(), 1e-6 * max(float(density.max()), 1e-30))
    densest = np.argsort(flat)[-_MOST:]
    densest = densest[flat[densest] > _LEAST * flat.max()]
    z, y, x = (place - len(density) // 2 for place in np.unravel_index(densest, density.shape))
    centres = np.stack([x, y, z], axis=1).astype(np.float32)
    equal = round_gaussians(centres, math.log(_SIGMA), 0.0, 3)
    return replace(equal, log_masses=torch.from_numpy(np.log(flat[densest]).astype(np.float32)))


def show(reporter: Reporter, half: int, map_: NDArray[np.float32], box_in_angstroms: float) -> None:
    """Show a map of a half, 1 or 2, to the reporter's watcher, if there is one."""
    if reporter.watcher is not None:
        reporter.watch(half, gaussians_of(map_), box_in_angstroms / map_.shape[-1])
