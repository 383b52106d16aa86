"""The gather behind the refinement: a transform and its slopes between the grid points."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from emsplat.fourier.slices import MARGIN, fourier_volume
from emsplat.poses.refine_kernels import WINDOW, _transform, tap_table
from phantom import lopsided_map


@numba.njit
def transforms(grid, table, box_size, frequencies):
    flat, row = grid.view(np.float32).reshape(-1), 2 * grid.shape[2]
    plane = row * grid.shape[1]
    origin = (MARGIN + box_size) * (plane + row) + 2 * MARGIN
    out = np.empty((len(frequencies), 4), dtype=np.complex128)
    for i in range(len(frequencies)):
        k = frequencies[i]
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = _transform(flat, origin, row, plane, table, k[0], k[1], k[2])
    return out


@pytest.mark.parametrize("box_size", [32, 33])
def test_the_transform_and_its_slopes(box_size: int) -> None:
    """Against the sum over all voxels, on both sides of kx = 0 and at the edge of the grid."""
    volume = lopsided_map(box_size)
    frequencies = np.random.default_rng(0).uniform(-9, 9, (200, 3))
    frequencies[:5] = [[0, 0, 0], [1, 0, 0], [-1e-9, 3, 0], [0, -box_size / 2, 0], [-0.25, 0, box_size / 2]]
    found = transforms(fourier_volume(volume, WINDOW).grid, tap_table(), box_size, frequencies)
    r = np.arange(box_size) - box_size // 2
    z, y, x = np.meshgrid(r, r, r, indexing="ij")
    turn = -2j * np.pi / box_size
    expected = []
    for k in frequencies:
        terms = volume * np.exp(turn * (k[0] * x + k[1] * y + k[2] * z))
        expected.append([terms.sum(), *((turn * axis * terms).sum() for axis in (x, y, z))])
    error = np.linalg.norm(found - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert error[0] < 1e-3
    assert np.all(error[1:] < 0.03)
