"""Cells of directions: mates together, each with as much of what was measured as any other."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.conventions import rotation_matrices
from emsplat.symmetry import symmetry_operators
from emsplat.validation.directions import CELLS, _bin_centres, bins_of, cells_of, density_at, measured_density


def directions(n=2000, seed=0):
    u = np.random.default_rng(seed).normal(size=(n, 3))
    return u / np.linalg.norm(u, axis=1, keepdims=True)


def views(n, seed=0, spread=180.0):
    rng = np.random.default_rng(seed)
    tilt = np.rad2deg(np.arccos(rng.uniform(np.cos(np.deg2rad(spread)), 1, n)))
    return rotation_matrices(np.stack([rng.uniform(-180, 180, n), tilt, rng.uniform(-180, 180, n)], axis=1))


def test_a_direction_lies_in_the_bin_whose_centre_is_near_and_with_its_opposite():
    u = directions()
    bins = bins_of(*u.T)
    np.testing.assert_array_equal(bins, bins_of(*-u.T))
    assert np.abs((_bin_centres()[bins] * u).sum(axis=1)).min() > np.cos(np.deg2rad(5))


@pytest.mark.parametrize("box_size", [24, 25])
@pytest.mark.parametrize("group", ["C1", "C4", "D3", "O"])
def test_cells_hold_alike_and_mates_share_one(box_size, group):
    operators = symmetry_operators(group)
    cells = cells_of(box_size, operators)
    assert cells.shape == (box_size, box_size, box_size // 2)
    share = np.bincount(cells.ravel(), minlength=CELLS) / cells.size
    assert share.min() > 0.2 / CELLS
    assert share.max() < 3 / CELLS
    k = np.fft.fftfreq(box_size) * box_size
    z, y, x = np.meshgrid(k, k, np.arange(1, box_size // 2 + 1), indexing="ij")
    of_bin = np.full(len(_bin_centres()), -1)
    of_bin[bins_of(x, y, z)] = cells
    for operator in operators:
        mates = _bin_centres() @ operator.T
        found = of_bin[bins_of(*mates.T)]
        known = (found >= 0) & (of_bin >= 0)
        assert np.mean(found[known] == of_bin[known]) > 0.6  # but for bins that a border runs through


def test_views_count_by_their_weights():
    rotations, symmetry = views(300, spread=60.0), symmetry_operators("C2")
    weights = np.random.default_rng(1).integers(0, 4, 300)
    repeated = measured_density(np.repeat(rotations, weights, axis=0), symmetry)
    np.testing.assert_allclose(measured_density(rotations, symmetry, weights), repeated, rtol=1e-5)
    np.testing.assert_allclose(
        measured_density(rotations, symmetry, np.full(300, 0.3)), measured_density(rotations, symmetry), rtol=1e-5
    )


def test_directions_that_no_view_has_measured_get_no_cells_of_their_own():
    rotations = views(3000, spread=25.0)  # along z: slices lie about the plane z = 0
    density = measured_density(rotations, np.eye(3)[None])
    assert density.mean() == pytest.approx(1)
    at = density_at(32, density)
    k = np.fft.fftfreq(32) * 32
    z, y, x = np.meshgrid(k, k, np.arange(1, 17), indexing="ij")
    steep = np.abs(z) > 0.7 * np.sqrt(x**2 + y**2 + z**2)
    assert at[steep].max() < 0.05
    assert at[np.abs(z) < 0.1 * np.hypot(x, y)].min() > 1
    cells = cells_of(32, None, density)
    measured = np.array([at[cells == number].astype(np.float64).__pow__(2).sum() for number in range(CELLS)])
    assert measured.min() > 0.3 * measured.mean()
