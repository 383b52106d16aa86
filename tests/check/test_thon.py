"""The CTF in power spectra: seen where it is, at the scale where it is, and not in noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.fft

from emsplat.check.thon import ThonFit, fit_thon_rings, images_are_multiplied, phase_powers, thon_findings
from emsplat.optics.ctf import ctf, ctf_parameters
from emsplat.particles.table import Particles
from phantom import imagined_particles

BOX, PIXEL_SIZE, N = 64, 2.5, 400


def spectra_of(
    particles: Particles, signal: float, seed: int, multiplied: bool = False, noise: float = 1.0
) -> np.ndarray:
    """Transforms of images whose signal has random phases: power signal · CTF² + noise."""
    rng = np.random.default_rng(seed)
    shape = (len(particles), BOX, BOX)
    transfer = ctf(particles)
    spectra = np.sqrt(signal) * transfer * scipy.fft.rfft2(rng.standard_normal(shape))
    spectra += np.sqrt(noise) * scipy.fft.rfft2(rng.standard_normal(shape))
    return (spectra * transfer if multiplied else spectra).astype(np.complex64)


def fit_of(spectra: np.ndarray, particles: Particles) -> ThonFit:
    fit = fit_thon_rings(phase_powers(spectra, ctf_parameters(particles)), particles)
    assert fit is not None
    return fit


def scaled(particles: Particles, factor: float) -> Particles:
    """The table with a pixel size that is wrong by the factor."""
    size = particles.pixel_size_in_angstroms * factor
    optics = tuple(replace(group, pixel_size_in_angstroms=size) for group in particles.optics)
    return replace(particles, optics=optics)


def test_power_is_constant_where_the_phase_is() -> None:
    """Images that are nothing but their astigmatic CTF: power along the ellipses is sin² at the mean defocus."""
    particles = imagined_particles(20, BOX, PIXEL_SIZE)
    parameters = ctf_parameters(particles)
    powers = phase_powers(ctf(particles).astype(np.complex64), parameters)
    s = np.arange(BOX // 2) / (BOX * PIXEL_SIZE)
    phase = 0.5 * (parameters[:, :1] + parameters[:, 2:3]) * s**2 + parameters[:, 3:4] * s**4 + parameters[:, 4:5]
    slow = np.abs(np.gradient(phase, axis=1)) < 0.35
    slow[:, 0] = False
    assert slow.sum() > 100
    assert np.abs(powers - np.sin(phase) ** 2)[slow].max() < 0.1


@pytest.mark.parametrize("factor", [0.5, 0.93, 1.0, 1.1, 2.0])
def test_a_wrong_pixel_size_is_found(factor: float) -> None:
    """The rings of a table whose pixel size is wrong by a factor fit at its inverse."""
    particles = imagined_particles(N, BOX, PIXEL_SIZE)
    table = scaled(particles, factor)
    fit = fit_of(spectra_of(particles, 0.1, 1), table)
    assert fit.is_visible
    assert fit.best_scale * factor == pytest.approx(1, abs=0.015)
    assert fit.pixel_size_is_wrong == (factor != 1)
    finding = thon_findings(fit, table, 0.0)[0]
    assert finding.verdict == ("fine" if factor == 1 else "problem")
    if factor == 2:
        assert finding.advice is not None
        assert float(finding.advice.split("--pixel-size ")[1].split(",")[0]) == pytest.approx(PIXEL_SIZE, rel=0.01)


def test_noise_shows_no_rings() -> None:
    particles = imagined_particles(N, BOX, PIXEL_SIZE)
    fits = [fit_of(spectra_of(particles, 0.0, seed), particles) for seed in range(10)]
    assert not any(fit.is_visible for fit in fits)
    significance = np.array([fit.significance for fit in fits])
    assert np.abs(significance).max() < 4
    assert significance.std() < 2


def test_one_ring_says_nothing() -> None:
    """Pixels so large that Nyquist lies on the first zero."""
    particles = imagined_particles(N, BOX, 9.0)
    powers = phase_powers(spectra_of(particles, 0.5, 4), ctf_parameters(particles))
    fit = fit_thon_rings(powers, particles)
    assert fit is None or not fit.pixel_size_is_wrong


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_thicker_ice_at_higher_defocus_makes_no_rings(strength: float) -> None:
    """Noise whose spectrum is the steeper, the higher the defocus."""
    particles = imagined_particles(N, BOX, PIXEL_SIZE)
    defocus = particles.defocus_u_in_angstroms
    k = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.rfftfreq(BOX))
    level = 1 + strength * ((defocus - defocus.mean()) / defocus.std())[:, None, None] * (0.25 - k)
    fit = fit_of(spectra_of(particles, 0.0, 5) * np.sqrt(level), particles)
    assert not fit.is_visible


@pytest.mark.parametrize("signal", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("multiplied", [False, True])
def test_multiplication_with_the_ctf_is_told(signal: float, multiplied: bool) -> None:
    particles = imagined_particles(N, BOX, PIXEL_SIZE)
    fit = fit_of(spectra_of(particles, signal, 2, multiplied), particles)
    told = images_are_multiplied(fit, 0.0)
    assert told is (None if signal == 0 and not multiplied else multiplied)
    for flag in (False, True):
        optics = tuple(replace(group, premultiplied=flag) for group in particles.optics)
        problems = [f for f in thon_findings(fit, replace(particles, optics=optics), 0.0) if f.verdict == "problem"]
        assert len(problems) == (told is not None and flag != multiplied)


def test_clean_images_leave_it_open_whether_they_were_multiplied() -> None:
    """Their own signal vanishes at the zeros."""
    particles = imagined_particles(N, BOX, PIXEL_SIZE)
    fit = fit_of(spectra_of(particles, 1.0, 3, noise=1e-3), particles)
    assert fit.vanishing > 0.75
    assert images_are_multiplied(fit, signal_share=0.9) is None


def test_one_defocus_says_nothing() -> None:
    particles = imagined_particles(N, BOX, PIXEL_SIZE)
    same = np.full(N, 12_000.0)
    particles = replace(particles, defocus_u_in_angstroms=same, defocus_v_in_angstroms=same)
    powers = phase_powers(spectra_of(particles, 0.5, 4), ctf_parameters(particles))
    assert fit_thon_rings(powers, particles) is None
    (finding,) = thon_findings(None, particles, 0.0)
    assert finding.verdict == "note"
