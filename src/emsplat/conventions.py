"""Units, axes and signs. This is the only module that defines them.

Interfaces use Å, degrees, e/Å², kV and mm (Cs); grids inside use pixels. The unit is part of the name.
Volumes are ``[z, y, x]`` and images ``[y, x]``, with the origin at voxel ``D // 2`` for odd and even D.
``x_image = A x_volume``, where A is RELION's matrix of (rot, tilt, psi); an image is the integral along the rotated z.
A central slice therefore sits at ``k_volume = Aᵀ (k_x, k_y, 0)``.
``rlnOriginXAngst/YAngst`` is the shift that *centres* an image: the particle's centre lies at
``D // 2 − origin / pixel_size``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rotation_matrices(euler_angles_in_degrees: ArrayLike) -> NDArray[np.float64]:
    """RELION's matrices A for (rot, tilt, psi).

    Args:
        euler_angles_in_degrees: (..., 3), rot, tilt, psi.
    Returns:
        (..., 3, 3), rows act on (x, y, z); ``x_image = A x_volume``.
    Source: Heymann, Chagoyen & Belnap (2005), the ZYZ convention RELION follows.
    """
    rot, tilt, psi = np.moveaxis(np.deg2rad(np.asarray(euler_angles_in_degrees, dtype=np.float64)), -1, 0)
    return _about_z(psi) @ _about_y(tilt) @ _about_z(rot)


def _about_z(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    c, s, o, i = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, s, o, -s, c, o, o, o, i], axis=-1).reshape(*angle.shape, 3, 3)


def _about_y(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    c, s, o, i = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, o, -s, o, i, o, s, o, c], axis=-1).reshape(*angle.shape, 3, 3)


def euler_angles(rotations: ArrayLike) -> NDArray[np.float64]:
    """(rot, tilt, psi) in degrees, (..., 3), of RELION matrices (..., 3, 3); at tilt 0 or 180 rot is set to 0."""
    a = np.asarray(rotations, dtype=np.float64)
    sin_tilt = np.hypot(a[..., 2, 0], a[..., 2, 1])
    regular = sin_tilt > 1e-9
    rot = np.where(regular, np.arctan2(a[..., 2, 1], a[..., 2, 0]), 0.0)
    psi = np.where(regular, np.arctan2(a[..., 1, 2], -a[..., 0, 2]), np.arctan2(a[..., 0, 1], a[..., 1, 1]))
    return np.rad2deg(np.stack([rot, np.arctan2(sin_tilt, a[..., 2, 2]), psi], axis=-1))


def are_rotations(matrices: ArrayLike, tolerance: float) -> NDArray[np.bool_]:
    """(...) whether (..., 3, 3) matrices turn without scaling or mirroring, to within the tolerance in ``A Aᵀ``."""
    a = np.asarray(matrices, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # matrices with huge values are no rotations
        error = np.abs(a @ np.swapaxes(a, -1, -2) - np.eye(3)).max(axis=(-1, -2), initial=0.0)
        return np.logical_and(error < tolerance, np.linalg.det(a) > 0)


def tilt_rotations(
    x_tilt_in_degrees: ArrayLike, y_tilt_in_degrees: ArrayLike, z_rotation_in_degrees: ArrayLike
) -> NDArray[np.float64]:
    """RELION-5's rotations of a tomogram into its tilt images: about x, then y, then z, right-handed.

    Args:
        x_tilt_in_degrees, y_tilt_in_degrees, z_rotation_in_degrees: (...), rlnTomoXTilt, rlnTomoYTilt, rlnTomoZRot.
    Returns:
        (..., 3, 3), rows act on (x, y, z); ``x_image = R x_tomogram``.
    Source: RELION 5, ``Tomogram::setProjectionMatrix``.
    """
    x, y, z = (
        np.deg2rad(np.asarray(a, np.float64)) for a in (x_tilt_in_degrees, y_tilt_in_degrees, z_rotation_in_degrees)
    )
    c, s, o, i = np.cos(x), np.sin(x), np.zeros_like(x), np.ones_like(x)
    about_x = np.stack([i, o, o, o, c, -s, o, s, c], axis=-1).reshape(*x.shape, 3, 3)
    return _about_z(-z) @ _about_y(-y) @ about_x


def electron_wavelength_in_angstroms(voltage_in_kilovolts: ArrayLike) -> NDArray[np.float64]:
    """Relativistic de Broglie wavelength; 0.0197 Å at 300 kV. Source: CODATA 2018 constants."""
    volts = np.asarray(voltage_in_kilovolts, dtype=np.float64) * 1e3
    return 12.2642598 / np.sqrt(volts * (1 + 9.78475598e-7 * volts))


def spatial_frequency_radii(box_size: int) -> NDArray[np.float64]:
    """Radius of every voxel of a half-plane transform, (D, D//2+1) in units of 1/D."""
    ky = np.fft.fftfreq(box_size, 1 / box_size)
    kx = np.arange(box_size // 2 + 1)
    return np.hypot(ky[:, None], kx[None, :])
