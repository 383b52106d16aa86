"""The gather behind the refinement: a transform and its slopes between the grid points."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.fourier.slices import fourier_volume
from emsplat.poses.refine_kernels import WINDOW, tap_table
from kernels import transforms
from phantom import lopsided_map


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
