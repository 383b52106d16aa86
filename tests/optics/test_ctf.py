from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emsplat.io.mrc import write_map
from emsplat.io.star import write_star
from emsplat.optics.ctf import CtfTerms, ctf, ctf_at, ctf_in_double_precision, ctf_parameters
from emsplat.particles.table import Particles
from emsplat.simulation import SimulationSettings
from emsplat.simulation.acquisition import acquire, star_tables
from relion import run_relion

PIXEL_SIZE = 1.4


def some_particles(box_size: int = 32, n: int = 6, voltage: float = 200.0, **changes: np.ndarray) -> Particles:
    """Strong astigmatism, phase shifts, B-factors and scales, all different."""
    settings = SimulationSettings(
        n_images=n,
        box_size=box_size,
        pixel_size_in_angstroms=PIXEL_SIZE,
        voltage_in_kilovolts=voltage,
        spherical_aberration_in_millimetres=1.9,
        amplitude_contrast=0.08,
        astigmatism_in_angstroms=1500.0,
    )
    particles = acquire(settings, Path("particles.star"), Path("particles.mrcs"))
    defaults = {
        "phase_shift_in_degrees": np.linspace(0, 90, n),
        "b_factor_in_square_angstroms": np.linspace(0, 60, n),
        "ctf_scale": np.linspace(1, 0.7, n),
    }
    return replace(particles, **(defaults | changes))


def direct_ctf(particles: Particles, i: int) -> np.ndarray:
    """(D, D//2+1) float64, from the formula in polar coordinates."""
    box_size, optics = particles.box_size, particles.optics[0]
    sy = np.fft.fftfreq(box_size, PIXEL_SIZE)[:, None]
    sx = np.fft.rfftfreq(box_size, PIXEL_SIZE)[None, :]
    s2, azimuth = sx**2 + sy**2, np.arctan2(sy, sx)
    volts = optics.voltage_in_kilovolts * 1e3
    wavelength = 12.2642598 / np.sqrt(volts * (1 + 9.78475598e-7 * volts))
    u, v = particles.defocus_u_in_angstroms[i], particles.defocus_v_in_angstroms[i]
    angle = np.deg2rad(particles.defocus_angle_in_degrees[i])
    defocus = 0.5 * (u + v) + 0.5 * (u - v) * np.cos(2 * (azimuth - angle))
    cs = optics.spherical_aberration_in_millimetres * 1e7
    chi = np.pi * wavelength * defocus * s2 - 0.5 * np.pi * cs * wavelength**3 * s2**2
    chi = chi + np.deg2rad(particles.phase_shift_in_degrees[i])
    w = optics.amplitude_contrast
    value = np.sqrt(1 - w**2) * np.sin(chi) + w * np.cos(chi)
    return particles.ctf_scale[i] * np.exp(-particles.b_factor_in_square_angstroms[i] * s2 / 4) * value


@pytest.mark.parametrize("box_size", [32, 33, 2, 3])
@pytest.mark.parametrize("voltage", [200.0, 300.0])
def test_ctf_against_the_formula(box_size: int, voltage: float) -> None:
    particles = some_particles(max(box_size, 16), voltage=voltage)
    particles = replace(particles, optics=(replace(particles.optics[0], box_size=box_size),))
    got = ctf(particles)
    expected = np.array([direct_ctf(particles, i) for i in range(len(particles))])
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_underfocus_makes_particles_white_and_phase_plates_start_at_a_maximum() -> None:
    n = 2
    particles = some_particles(n=n, phase_shift_in_degrees=np.array([0.0, 90.0]), ctf_scale=np.ones(n))
    values = ctf(particles)
    assert values[0, 0, 0] == pytest.approx(0.08, abs=1e-6)  # the amplitude contrast
    assert values[0, 0, 1] > values[0, 0, 0]
    assert values[1, 0, 0] == pytest.approx(np.sqrt(1 - 0.08**2), abs=1e-6)


@pytest.mark.parametrize(("voltage", "share"), [(300.0, 1.0), (200.0, 0.8)])
def test_dose_weight_is_grant_and_grigorieffs(voltage: float, share: float) -> None:
    dose = np.array([0.0, 1.0, 20.0, 100.0])
    plain = some_particles(n=4, voltage=voltage)
    exposed = replace(plain, pre_exposure=dose)
    s = np.hypot(np.fft.fftfreq(32, PIXEL_SIZE)[:, None], np.fft.rfftfreq(32, PIXEL_SIZE))
    s[0, 0] = 1e-9  # no dose removes the mean
    weight = np.exp(-dose[:, None, None] / (2 * share * (0.24499 * s**-1.6649 + 2.8141)))
    expected = weight * ctf(plain)
    np.testing.assert_allclose(ctf(exposed), expected, atol=1e-6)


def test_ctf_is_relions(tmp_path: Path) -> None:
    """A delta function's projection is the CTF's inverse transform, whatever the view."""
    particles = replace(some_particles(), origin_in_angstroms=np.zeros((6, 2)))
    delta = np.zeros((32, 32, 32), dtype=np.float32)
    delta[16, 16, 16] = 1
    write_map(tmp_path / "delta.mrc", delta, PIXEL_SIZE)
    write_star(tmp_path / "particles.star", star_tables(particles))
    run_relion("relion_project", "--i", "delta.mrc", "--o", "out", "--ang", "particles.star", "--ctf", folder=tmp_path)
    images = mrcfile.read(tmp_path / "out.mrcs")
    theirs = np.fft.rfft2(np.fft.ifftshift(images, axes=(1, 2)))
    inside = np.hypot(np.fft.fftfreq(32, 1 / 32)[:, None], np.arange(17)) < 15
    expected = np.array([direct_ctf(particles, i) for i in range(6)])
    np.testing.assert_allclose(theirs[:, inside], expected[:, inside], atol=2e-3)  # its wavelength has 5 digits


def test_no_images_no_ctfs() -> None:
    particles = some_particles().select(np.zeros(6, dtype=bool))
    assert ctf(particles).shape == (0, 32, 17)


def test_a_single_frequency_and_a_whole_row_agree() -> None:
    """`ctf_at`, in float64, against `ctf`, whose sine is its own; with B-factors, doses and hundreds of radians."""
    particles = some_particles(48, pre_exposure=np.linspace(0, 40, 6), defocus_u_in_angstroms=np.linspace(1e3, 9e4, 6))
    step = 1 / (48 * PIXEL_SIZE)
    k = np.fft.fftfreq(48, 1 / 48)
    np.testing.assert_allclose(ctf(particles), ctf_in_double_precision(particles), rtol=0, atol=2e-6)
    for row, whole in zip(ctf_parameters(particles), ctf(particles), strict=True):
        terms = CtfTerms(*row.tolist())
        single = [[ctf_at.py_func(terms, kx * step, ky * step, 0.0) for kx in range(25)] for ky in k]
        np.testing.assert_allclose(whole, single, rtol=0, atol=1e-6)
