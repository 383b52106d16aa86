"""The contrast transfer function, as RELION defines it.

``C(s) = scale · exp(−B s²/4) · [sqrt(1−w²) sin χ + w cos χ]``,
``χ = π λ z(α) s² − ½ π Cs λ³ s⁴ + phase shift``, positive at low frequency for underfocus, particles white;
``z(α) = ½(U+V) + ½(U−V) cos 2(α − angle)``. Even Zernikes add to χ, and the magnification matrix changes s: see
`aberrations`.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import electron_wavelength_in_angstroms
from emsplat.imaging.aberrations import symmetric_phases
from emsplat.particles.table import Particles

# Critical dose of the 300 kV measurement, e/Å² at spatial frequency s in 1/Å: 0.24499 s^−1.6649 + 2.8141;
# 0.8 of it at 200 kV. Source: Grant & Grigorieff (2015), eLife 4:e06980.
_DOSE_A, _DOSE_B, _DOSE_C = 0.24499, -1.6649, 2.8141
_TURNS_PER_RADIAN = 0.5 / np.pi
# sin 2πt = t (c0 + c1 t² + …) on [−¼, ¼] (least-squares fit reweighted towards the minimax one).
_SINE = tuple(np.float32(c) for c in (6.28318527, -41.3416775, 81.6022311, -76.574989, 39.7108931))


def ctf_parameters(particles: Particles) -> NDArray[np.float64]:
    """(N, 13) coefficients of the CTF with the frequency in 1/Å, one row an image, as `ctf_at` reads them.

    The phase is ``p0 (sx²) + p1 (sx sy) + p2 (sy²) + p3 s⁴ + p4``, the factor ``p5 exp(p6 s²)``,
    the dose weight ``exp(−p7 / critical(s))``; p8 scales the critical dose with the voltage;
    p9 to p12 are the magnification matrix, which turns the image's frequency into s.
    """
    of_group = np.array(
        [
            (
                g.voltage_in_kilovolts,
                g.spherical_aberration_in_millimetres * 1e7,
                g.amplitude_contrast,
                *g.magnification,
            )
            for g in particles.optics
        ]
    )[particles.optics_group]
    voltage, cs, w = of_group[:, :3].T
    wavelength = electron_wavelength_in_angstroms(voltage)
    mean = 0.5 * (particles.defocus_u_in_angstroms + particles.defocus_v_in_angstroms)
    half = 0.5 * (particles.defocus_u_in_angstroms - particles.defocus_v_in_angstroms)
    angle = np.deg2rad(particles.defocus_angle_in_degrees)
    # cos 2(α − angle) s² = cos 2angle (sx² − sy²) + 2 sin 2angle sx sy
    p = np.empty((len(particles), 13))
    p[:, 0] = np.pi * wavelength * (mean + half * np.cos(2 * angle))
    p[:, 1] = np.pi * wavelength * 2 * half * np.sin(2 * angle)
    p[:, 2] = np.pi * wavelength * (mean - half * np.cos(2 * angle))
    p[:, 3] = -0.5 * np.pi * cs * wavelength**3
    # sqrt(1−w²) sin χ + w cos χ = sin(χ + asin w)
    p[:, 4] = np.deg2rad(particles.phase_shift_in_degrees) + np.arcsin(w)
    p[:, 5] = particles.ctf_scale
    p[:, 6] = -0.25 * particles.b_factor_in_square_angstroms
    p[:, 7] = 0.5 * particles.pre_exposure
    p[:, 8] = np.where(voltage < 250, 0.8, 1.0)
    p[:, 9:] = of_group[:, 3:]
    return p


def critical_dose(s2):
    """In e/Å² at 300 kV, at s² > 0 in 1/Å²; of anything that can be calculated with."""
    return _DOSE_A * s2 ** (0.5 * _DOSE_B) + _DOSE_C


_critical_dose = numba.njit(inline="always")(critical_dose)


@numba.njit(inline="always")
def as_tuple(p):
    """A row of `ctf_parameters` as a tuple: no store into an array changes it, so loops need not read it again."""
    return p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12]


@numba.njit(inline="always")
def _envelope(p, s2):
    """B-factor and dose weight at s² in 1/Å²."""
    exponent = p[6] * s2
    if p[7] > 0.0 and s2 > 0.0:
        exponent -= p[7] / (p[8] * _critical_dose(s2))
    return np.exp(exponent) if exponent != 0.0 else 1.0


@numba.njit(inline="always", error_model="numpy")
def ctf_at(p, fx, fy, symmetric_phase):
    """CTF of one image at one of its frequencies (1/Å); p is its row of `ctf_parameters`, or that as a tuple."""
    sx, sy = p[9] * fx + p[10] * fy, p[11] * fx + p[12] * fy
    s2 = sx * sx + sy * sy
    phase = p[0] * sx * sx + p[1] * sx * sy + p[2] * sy * sy + p[3] * s2 * s2 + p[4] + symmetric_phase
    return p[5] * np.sin(phase) * _envelope(p, s2)


@numba.njit(inline="always")
def _sine_of_turns(turns):
    """sin 2πt in float32; vectorised, unlike the library's. Off by 1e-8 of the value before rounding."""
    t = np.float32(turns - np.rint(turns))
    t = max(min(t, np.float32(0.5) - t), np.float32(-0.5) - t)
    u = t * t
    return ((((_SINE[4] * u + _SINE[3]) * u + _SINE[2]) * u + _SINE[1]) * u + _SINE[0]) * t


@numba.njit(error_model="numpy", fastmath={"contract", "nsz"})
def ctf_along(p, fy, step, symmetric_phases, out):
    """CTFs of one image along a row of frequencies, (kx · step, fy) for kx = 0, 1, …; as `ctf_at`, in float32.

    symmetric_phases, out: (columns,) float32.
    """
    for kx in range(len(out)):
        fx = kx * step
        sx, sy = p[9] * fx + p[10] * fy, p[11] * fx + p[12] * fy
        s2 = sx * sx + sy * sy
        phase = p[0] * sx * sx + p[1] * sx * sy + p[2] * sy * sy + p[3] * s2 * s2 + p[4] + symmetric_phases[kx]
        out[kx] = np.float32(p[5]) * _sine_of_turns(phase * _TURNS_PER_RADIAN)
    if p[6] == 0.0 and not p[7] > 0.0:
        return
    for kx in range(len(out)):
        fx = kx * step
        sx, sy = p[9] * fx + p[10] * fy, p[11] * fx + p[12] * fy
        out[kx] *= np.float32(_envelope(p, sx * sx + sy * sy))


def ctf(particles: Particles) -> NDArray[np.float32]:
    """(N, D, D//2+1) CTFs on the half plane, ky in fft order, kx from 0; the antisymmetric phases are no part of it."""
    box_size = particles.box_size
    step = 1 / (box_size * particles.pixel_size_in_angstroms)
    return _ctf(ctf_parameters(particles), *symmetric_phases(particles, box_size), box_size, step)


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _ctf(parameters, symmetric, symmetric_of, box_size, step):
    n = parameters.shape[0]
    half = box_size // 2 + 1
    out = np.empty((n, box_size, half), dtype=np.float32)
    none = np.zeros(half, dtype=np.float32)
    for i in numba.prange(n):
        p = as_tuple(parameters[i])
        for row in range(box_size):
            ky = row if 2 * row < box_size else row - box_size
            gain = symmetric[symmetric_of[i], row] if symmetric_of[i] >= 0 else none
            ctf_along(p, ky * step, step, gain, out[i, row])
    return out
