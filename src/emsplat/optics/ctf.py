"""The contrast transfer function, as RELION defines it.

``C(s) = scale · exp(−B s²/4) · [sqrt(1−w²) sin χ + w cos χ]``,
``χ = π λ z(α) s² − ½ π Cs λ³ s⁴ + phase shift``, positive at low frequency for underfocus and white particles;
``z(α) = ½(U+V) + ½(U−V) cos 2(α − angle)``. Even Zernikes add to χ, and the magnification matrix changes s: see
`aberrations`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import electron_wavelength_in_angstroms
from emsplat.optics.aberrations import symmetric_phases
from emsplat.particles.table import Particles

# Critical dose of the 300 kV measurement, e/Å² at spatial frequency s in 1/Å: 0.24499 s^−1.6649 + 2.8141;
# 0.8 of it at 200 kV. Source: Grant & Grigorieff (2015), eLife 4:e06980.
_DOSE_A, _DOSE_B, _DOSE_C = 0.24499, -1.6649, 2.8141
_TURNS_PER_RADIAN = 0.5 / np.pi
# sin 2πt = t (c0 + c1 t² + …) on [−¼, ¼] (least-squares fit reweighted towards the minimax one).
_SINE = tuple(np.float32(c) for c in (6.28318527, -41.3416775, 81.6022311, -76.574989, 39.7108931))


class CtfTerms(NamedTuple):
    """The terms of the CTF with the frequency in 1/Å: numbers of one image in a kernel, or (N,) of all images.

    Let s be the frequency in the plane of the volume, after the magnification of the frequency in the image:

        phase = xx sx² + xy sx sy + yy sy² + quartic s⁴ + constant
        C = scale · sin(phase) · exp(decay s² − dose / (dose_scale · critical(s²)))
    """

    xx: Any
    xy: Any
    yy: Any
    quartic: Any
    constant: Any
    scale: Any
    decay: Any
    dose: Any
    dose_scale: Any  # factor from the critical doses at 300 kV
    magnification_xx: Any
    magnification_xy: Any
    magnification_yx: Any
    magnification_yy: Any


def ctf_terms(particles: Particles) -> CtfTerms:
    """The terms of all images, (N,) each."""
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
    voltage, cs, w, *magnification = of_group.T
    wavelength = electron_wavelength_in_angstroms(voltage)
    mean = 0.5 * (particles.defocus_u_in_angstroms + particles.defocus_v_in_angstroms)
    half = 0.5 * (particles.defocus_u_in_angstroms - particles.defocus_v_in_angstroms)
    angle = np.deg2rad(particles.defocus_angle_in_degrees)
    return CtfTerms(
        # cos 2(α − angle) s² = cos 2angle (sx² − sy²) + 2 sin 2angle sx sy
        np.pi * wavelength * (mean + half * np.cos(2 * angle)),
        np.pi * wavelength * 2 * half * np.sin(2 * angle),
        np.pi * wavelength * (mean - half * np.cos(2 * angle)),
        -0.5 * np.pi * cs * wavelength**3,
        # sqrt(1−w²) sin χ + w cos χ = sin(χ + asin w)
        np.deg2rad(particles.phase_shift_in_degrees) + np.arcsin(w),
        particles.ctf_scale,
        -0.25 * particles.b_factor_in_square_angstroms,
        0.5 * particles.pre_exposure,
        np.where(voltage < 250, 0.8, 1.0),
        *magnification,
    )


def ctf_parameters(particles: Particles) -> NDArray[np.float64]:
    """(N, 13) `ctf_terms`, one row for each image; kernels turn a row into `CtfTerms` by `terms_of`."""
    return np.stack(ctf_terms(particles), axis=1)


def critical_dose(s2):
    """Critical dose in e/Å² at 300 kV for s² > 0 in 1/Å², for numbers and arrays alike."""
    return _DOSE_A * s2 ** (0.5 * _DOSE_B) + _DOSE_C


_critical_dose = numba.njit(inline="always")(critical_dose)


@numba.njit(inline="always")
def terms_of(p):
    """A row of `ctf_parameters` as named values. Stores into arrays cannot change them, so loops read them once."""
    return CtfTerms(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], p[12])


@numba.njit(inline="always")
def quarter_wave_ahead(t):
    """The terms of a CTF with the cosine instead of the sine, which is the derivative by the phase."""
    return CtfTerms(
        t.xx, t.xy, t.yy, t.quartic, t.constant + 0.5 * np.pi, t.scale, t.decay, t.dose, t.dose_scale,
        t.magnification_xx, t.magnification_xy, t.magnification_yx, t.magnification_yy,
    )  # fmt: skip


@numba.njit(inline="always")
def magnified(t, x, y):
    """Coordinates of an image's frequency in the plane of the volume, in the same units."""
    return t.magnification_xx * x + t.magnification_xy * y, t.magnification_yx * x + t.magnification_yy * y


@numba.njit(inline="always")
def _envelope(t, s2):
    """The envelope of B-factor and dose at s² in 1/Å²."""
    exponent = t.decay * s2
    if t.dose > 0.0 and s2 > 0.0:
        exponent -= t.dose / (t.dose_scale * _critical_dose(s2))
    return np.exp(exponent) if exponent != 0.0 else 1.0


@numba.njit(inline="always", error_model="numpy")
def ctf_at(t, fx, fy, symmetric_phase):
    """CTF of an image with these `CtfTerms` at one of its frequencies (1/Å)."""
    sx, sy = magnified(t, fx, fy)
    s2 = sx * sx + sy * sy
    phase = t.xx * sx * sx + t.xy * sx * sy + t.yy * sy * sy + t.quartic * s2 * s2 + t.constant + symmetric_phase
    return t.scale * np.sin(phase) * _envelope(t, s2)


@numba.njit(inline="always")
def _sine_of_turns(turns):
    """sin 2πt in float32. Unlike the library's, it is vectorised. The relative error before rounding is 1e-8."""
    t = np.float32(turns - np.rint(turns))
    t = max(min(t, np.float32(0.5) - t), np.float32(-0.5) - t)
    u = t * t
    return ((((_SINE[4] * u + _SINE[3]) * u + _SINE[2]) * u + _SINE[1]) * u + _SINE[0]) * t


@numba.njit(error_model="numpy", fastmath={"contract", "nsz"})
def ctf_along(t, fy, step, symmetric_phases, out):
    """CTFs of one image along the frequencies (kx · step, fy) for kx = 0, 1, …; the same as `ctf_at`, in float32.

    symmetric_phases, out: (columns,) float32.
    """
    for kx in range(len(out)):
        sx, sy = magnified(t, kx * step, fy)
        s2 = sx * sx + sy * sy
        phase = t.xx * sx * sx + t.xy * sx * sy + t.yy * sy * sy + t.quartic * s2 * s2 + t.constant
        out[kx] = np.float32(t.scale) * _sine_of_turns((phase + symmetric_phases[kx]) * _TURNS_PER_RADIAN)
    if t.decay == 0.0 and not t.dose > 0.0:
        return
    for kx in range(len(out)):
        sx, sy = magnified(t, kx * step, fy)
        out[kx] *= np.float32(_envelope(t, sx * sx + sy * sy))


def ctf(particles: Particles) -> NDArray[np.float32]:
    """(N, D, D//2+1) CTFs on the half plane, ky in fft order, kx from 0, without the antisymmetric phases."""
    box_size = particles.box_size
    step = 1 / (box_size * particles.pixel_size_in_angstroms)
    return _ctf(ctf_parameters(particles), *symmetric_phases(particles, box_size), box_size, step)


def ctf_in_double_precision(particles: Particles) -> NDArray[np.float64]:
    """The CTFs by the formula, in plain NumPy and float64, against which the kernels are tested."""
    box_size = particles.box_size
    step = 1 / (box_size * particles.pixel_size_in_angstroms)
    fy, fx = np.fft.fftfreq(box_size, 1 / box_size)[:, None] * step, np.arange(box_size // 2 + 1) * step
    t = CtfTerms(*(values[:, None, None] for values in ctf_terms(particles)))
    sx = t.magnification_xx * fx + t.magnification_xy * fy
    sy = t.magnification_yx * fx + t.magnification_yy * fy
    s2 = sx**2 + sy**2
    phase = t.xx * sx**2 + t.xy * sx * sy + t.yy * sy**2 + t.quartic * s2**2 + t.constant
    even, even_of = symmetric_phases(particles, box_size, np.float64)
    for image in np.flatnonzero(even_of >= 0):
        phase[image] += even[even_of[image]]
    with np.errstate(divide="ignore"):  # the critical dose at frequency 0 is infinite
        dose = np.where(t.dose > 0, t.dose, 0.0) / (t.dose_scale * critical_dose(s2))
    return t.scale * np.sin(phase) * np.exp(t.decay * s2 - dose)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _ctf(parameters, symmetric, symmetric_of, box_size, step):
    n = parameters.shape[0]
    half = box_size // 2 + 1
    out = np.empty((n, box_size, half), dtype=np.float32)
    none = np.zeros(half, dtype=np.float32)
    for i in numba.prange(n):
        terms = terms_of(parameters[i])
        for row in range(box_size):
            ky = row if 2 * row < box_size else row - box_size
            phases = symmetric[symmetric_of[i], row] if symmetric_of[i] >= 0 else none
            ctf_along(terms, ky * step, step, phases, out[i, row])
    return out
