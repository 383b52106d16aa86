from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emsplat.conventions import (
    are_rotations,
    electron_wavelength_in_angstroms,
    euler_angles,
    rotation_matrices,
    spatial_frequency_radii,
    tilt_rotations,
)


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's Euler_angles2matrix, written out as in its euler.cpp."""
    ca, cb, cg = np.cos(np.deg2rad([rot, tilt, psi]))
    sa, sb, sg = np.sin(np.deg2rad([rot, tilt, psi]))
    cc, cs, sc, ss = cb * ca, cb * sa, sb * ca, sb * sa
    return np.array(
        [
            [cg * cc - sg * sa, cg * cs + sg * ca, -cg * sb],
            [-sg * cc - cg * sa, -sg * cs + cg * ca, sg * sb],
            [sc, ss, cb],
        ]
    )


def random_angles(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.uniform(-180, 180, n), rng.uniform(0, 180, n), rng.uniform(-180, 180, n)], axis=-1)


def test_matrices_are_relions() -> None:
    angles = random_angles(50)
    expected = np.array([relion_matrix(*row) for row in angles])
    np.testing.assert_allclose(rotation_matrices(angles), expected, atol=1e-14)


def test_euler_angles_survive_the_round_trip() -> None:
    angles = random_angles(200)
    np.testing.assert_allclose(euler_angles(rotation_matrices(angles)), angles, atol=1e-9)


@pytest.mark.parametrize("tilt", [0.0, 180.0, -35.0, 1e-7, 180 - 1e-7])
def test_the_matrix_survives_where_the_angles_are_not_unique(tilt: float) -> None:
    angles = random_angles(50)
    angles[:, 1] = tilt
    matrices = rotation_matrices(angles)
    back = euler_angles(matrices)
    np.testing.assert_allclose(rotation_matrices(back), matrices, atol=3e-8)
    assert (back[:, 1] >= 0).all()
    if tilt in (0.0, 180.0):
        np.testing.assert_array_equal(back[:, 0], 0)


def test_tilts_turn_the_tomogram_about_fixed_axes_in_turn() -> None:
    angles = random_angles(50)
    expected = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    np.testing.assert_allclose(tilt_rotations(*angles.T), expected, atol=1e-14)
    # a tilt about y alone brings what is above the centre to the right
    np.testing.assert_allclose(tilt_rotations(0, 90, 0) @ [0, 0, 1], [1, 0, 0], atol=1e-15)


def test_rotations_are_told_from_other_matrices() -> None:
    matrices = rotation_matrices(random_angles(50))
    assert are_rotations(matrices, 1e-12).all()
    others = [-np.eye(3), np.diag([1, 1, -1]), 1.1 * np.eye(3), np.ones((3, 3)), np.full((3, 3), np.nan)]
    others += [1e200 * np.eye(3), np.full((3, 3), np.inf)]
    assert not are_rotations(others, 0.05).any()
    assert are_rotations(np.eye(3) + 0.01, 0.05)
    assert not are_rotations(np.eye(3) + 0.01, 0.005)


def test_shapes_broadcast() -> None:
    assert rotation_matrices([10, 20, 30]).shape == (3, 3)
    assert rotation_matrices(np.zeros((2, 5, 3))).shape == (2, 5, 3, 3)
    assert euler_angles(np.eye(3)).shape == (3,)
    assert rotation_matrices(np.zeros((0, 3))).shape == (0, 3, 3)


def test_wavelength_against_the_relativistic_formula() -> None:
    h, m, e, c = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
    for kilovolts in (80, 200, 300):
        volts = 1e3 * kilovolts
        metres = h / np.sqrt(2 * m * e * volts * (1 + e * volts / (2 * m * c**2)))
        assert electron_wavelength_in_angstroms(kilovolts) == pytest.approx(1e10 * metres, rel=1e-6)


@pytest.mark.parametrize("box_size", [4, 5, 16, 17])
def test_shells_are_the_radius_of_each_frequency(box_size: int) -> None:
    ky = np.fft.fftfreq(box_size, 1 / box_size)
    kx = np.fft.rfftfreq(box_size, 1 / box_size)
    expected = np.sqrt(ky[:, None] ** 2 + kx[None, :] ** 2)
    np.testing.assert_allclose(spatial_frequency_radii(box_size), expected, atol=1e-12)
