"""Aberrations beyond defocus, astigmatism and Cs, with one set for each optics group, as RELION 3.1 defines them.

Let s be the frequency in an image (1/Å), M the magnification matrix, t the beam tilt in radians, and s′ = M s. The
transform of an image is ``exp(iφ(s′)) · C(s′) · F(Aᵀ s′)``, shifted: CTF and slice are also taken at s′.

- ``φ = Σ odd_i Z_i(s′) − 2π Cs λ² |s′|² (t·s′)`` is antisymmetric: phases that a real CTF cannot hold;
- the phase χ of the CTF gains ``−Σ even_i Z_i(s′)``, which is symmetric.

Z are Zernike polynomials without norm whose radius is |s′| in 1/Å and not a share of some disc. They are counted by
degree, then by order: odd Z(1,−1) Z(1,1) Z(3,−3) Z(3,−1) …, even Z(0,0) Z(2,−2) Z(2,0) Z(2,2) Z(4,−4) …; a negative
order is the sine. Source: Zivanov, Nakane & Scheres (2020), IUCrJ 7, 253–267; signs and order as measured with RELION
3.1.3 (tests/optics/test_aberrations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import electron_wavelength_in_angstroms
from emsplat.particles.table import OpticsGroup, Particles


def symmetric_phases(
    particles: Particles, box_size: int, dtype: type[np.floating] = np.float32
) -> tuple[NDArray, NDArray[np.int32]]:
    """The terms that are added to the phase χ of the CTF, in radians; see `_per_group`."""
    return _per_group(particles, box_size, lambda g: any(g.even_zernike), symmetric_phase, dtype)


def antisymmetric_factors(
    particles: Particles, box_size: int, dtype: type[np.complexfloating] = np.complex64
) -> tuple[NDArray, NDArray[np.int32]]:
    """The factor exp(iφ) in the transforms of the images; see `_per_group`."""
    return _per_group(
        particles,
        box_size,
        lambda g: any(g.odd_zernike) or any(g.beam_tilt_in_milliradians),
        lambda *arguments: np.exp(1j * antisymmetric_phase(*arguments)),
        dtype,
    )


def _per_group(
    particles: Particles,
    box_size: int,
    has: Callable[[OpticsGroup], bool],
    value: Callable[[OpticsGroup, NDArray, NDArray], NDArray],
    dtype: type[np.generic],
) -> tuple[NDArray, NDArray[np.int32]]:
    """Values on the half plane, for every optics group that occurs and has such an aberration.

    Args:
        box_size: D′ ≤ D of the half plane: D, or the box that the images are cropped to in Fourier space.
    Returns:
        (a, D′, D′//2+1) values, ky in fft order, kx from 0; (N,) the index of each particle's values, −1 for none.
    """
    step = 1 / (particles.box_size * particles.pixel_size_in_angstroms)
    sy = np.fft.fftfreq(box_size, 1 / box_size)[:, None] * step
    sx = np.arange(box_size // 2 + 1) * step
    chosen = [i for i in np.unique(particles.optics_group) if has(particles.optics[i])]
    images = np.empty((len(chosen), box_size, box_size // 2 + 1), dtype=dtype)
    number = np.full(len(particles.optics), -1, dtype=np.int32)
    for a, i in enumerate(chosen):
        images[a] = value(particles.optics[i], sx, sy)
        number[i] = a
    return images, number[particles.optics_group]


def antisymmetric_phase(group: OpticsGroup, sx: NDArray, sy: NDArray) -> NDArray[np.float64]:
    """φ in radians at frequencies of the image (1/Å, broadcast against each other)."""
    x, y = _magnified(group, sx, sy)
    tilt_x, tilt_y = group.beam_tilt_in_milliradians
    wavelength = float(electron_wavelength_in_angstroms(group.voltage_in_kilovolts))
    cs = group.spherical_aberration_in_millimetres * 1e7
    coma = -2e-3 * np.pi * cs * wavelength**2 * (x**2 + y**2) * (tilt_x * x + tilt_y * y)
    return coma + _zernike_sum(group.odd_zernike, 1, x, y)


def symmetric_phase(group: OpticsGroup, sx: NDArray, sy: NDArray) -> NDArray[np.float64]:
    """The term that is added to the phase χ of the CTF, in radians, at frequencies of the image (1/Å)."""
    return -_zernike_sum(group.even_zernike, 0, *_magnified(group, sx, sy))


def slice_matrices(particles: Particles) -> NDArray[np.float64]:
    """(N, 3, 3) matrices B such that the sample k of an image lies at ``k_volume = Bᵀ (k_x, k_y, 0) = Aᵀ M k``.

    They are rotations if nothing is magnified.
    """
    matrices = np.tile(np.eye(3), (len(particles.optics), 1, 1))
    matrices[:, :2, :2] = [_matrix(group).T for group in particles.optics]
    return matrices[particles.optics_group] @ particles.poses.rotations


def _matrix(group: OpticsGroup) -> NDArray[np.float64]:
    return np.reshape(group.magnification, (2, 2))


def _magnified(group: OpticsGroup, sx: NDArray, sy: NDArray) -> tuple[NDArray, NDArray]:
    (a, b), (c, d) = _matrix(group)
    return a * sx + b * sy, c * sx + d * sy


def _zernike_sum(coefficients: Sequence[float], first_degree: int, x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Σ coefficient × Z over the degrees first, first + 2, … and over the orders −n, −n + 2, … n of each."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    degree, order = first_degree, -first_degree
    for coefficient in coefficients:
        if coefficient:
            total += coefficient * zernike(degree, order, x, y)
        order += 2
        if order > degree:
            degree, order = degree + 2, -degree - 2
    return total


def zernike(degree: int, order: int, x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Zernike polynomial ``R(r) cos(m α)``, or ``R(r) sin(|m| α)`` for m < 0, with R(1) = 1.

    Source: Born & Wolf, Principles of Optics, 9.2.1.
    """
    n, m = degree, abs(order)
    squared = x**2 + y**2
    radial = np.zeros(squared.shape)  # R(r) / r^m by Horner's rule, highest power first
    for k in range((n - m) // 2 + 1):
        quotient = factorial(k) * factorial((n + m) // 2 - k) * factorial((n - m) // 2 - k)
        radial = radial * squared + (-1) ** k * (factorial(n - k) // quotient)
    angular = (x + 1j * y) ** m  # r^m (cos mα + i sin mα)
    return radial * (angular.imag if order < 0 else angular.real)
