"""Kernels that have no caller in Python, made callable for the tests of several rooms."""

from __future__ import annotations

import numba
import numpy as np

from emsplat.fourier.slices import MARGIN
from emsplat.poses.refine_kernels import _transform


@numba.njit
def transforms(grid, table, box_size, frequencies):
    """(n, 4) F and its slopes by x, y, z at (n, 3) frequencies, as the refinement interpolates them."""
    flat, row = grid.view(np.float32).reshape(-1), 2 * grid.shape[2]
    plane = row * grid.shape[1]
    origin = (MARGIN + box_size) * (plane + row) + 2 * MARGIN
    out = np.empty((len(frequencies), 4), dtype=np.complex128)
    for i in range(len(frequencies)):
        k = frequencies[i]
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = _transform(flat, origin, row, plane, table, k[0], k[1], k[2])
    return out
