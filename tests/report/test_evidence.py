"""What a run leaves for its report, against independent sums and formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.io.images import ImageSource
from emsplat.models.gaussians import Gaussians
from emsplat.outputs.evidence import Evidence, gather_evidence
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.runtime.reporting import Reporter

WAVELENGTH = 0.0196875  # Å at 300 kV


@pytest.fixture(scope="module")
def evidence(reconstructed: tuple[Reconstruction, Reporter]) -> Evidence:
    return gather_evidence(reconstructed[0])


def expected_spectrum(model: Gaussians, particles: Particles, row: int) -> NDArray[np.complex128]:
    """(D, D//2+1) transform of the image to expect, summed up Gaussian by Gaussian: the density's own transform."""
    d, pixel = particles.box_size, particles.pixel_size_in_angstroms
    ky, kx = np.meshgrid(np.fft.fftfreq(d, pixel), np.arange(d // 2 + 1) / (d * pixel), indexing="ij")
    s2 = kx**2 + ky**2
    k = np.stack([kx, ky, 0 * kx], axis=-1) @ particles.rotations()[row]
    mass, mean = model.masses().double().numpy(), model.centres.double().numpy()
    covariance = model.covariances().double().numpy()
    total = np.zeros(kx.shape, dtype=complex)
    for a, m, c in zip(mass, mean, covariance, strict=True):
        total += a * np.exp(-2j * np.pi * (k @ m) - 2 * np.pi**2 * np.einsum("yxi,ij,yxj->yx", k, c, k))
    centre = d // 2 * pixel - particles.origin_in_angstroms[row]
    total *= np.exp(-2j * np.pi * (kx * centre[0] + ky * centre[1])) / pixel**3
    u, v = particles.defocus_u_in_angstroms[row], particles.defocus_v_in_angstroms[row]
    angle = np.arctan2(ky, kx) - np.deg2rad(particles.defocus_angle_in_degrees[row])
    defocus = 0.5 * (u + v) + 0.5 * (u - v) * np.cos(2 * angle)
    chi = np.pi * WAVELENGTH * defocus * s2 - 0.5 * np.pi * 2.7e7 * WAVELENGTH**3 * s2**2
    return total * (np.sqrt(1 - 0.1**2) * np.sin(chi) + 0.1 * np.cos(chi))


def test_predictions_are_what_the_formulas_of_optics_say(
    reconstructed: tuple[Reconstruction, Reporter], evidence: Evidence
) -> None:
    result, _ = reconstructed
    rows = [int(np.flatnonzero(result.particles.ids == identity)[0]) for identity in evidence["pair_ids"]]
    for i, row in enumerate(rows[:2]):
        expected = expected_spectrum(result.gaussians, result.particles, row)
        found = np.fft.rfft2(evidence["predicted"][i].astype(float))
        radius = np.hypot(np.fft.fftfreq(48, 1 / 48)[:, None], np.arange(25))
        for shell in (2, 4, 7, 10, 13):  # the filter is a positive factor of the radius
            ring = np.abs(radius - shell) < 0.5
            norm = np.linalg.norm(found[ring]) * np.linalg.norm(expected[ring])
            assert np.vdot(found[ring], expected[ring]).real > 0.98 * norm


def test_recorded_images_are_those_of_the_stack(
    reconstructed: tuple[Reconstruction, Reporter], evidence: Evidence
) -> None:
    particles = reconstructed[0].particles
    rows = np.array([int(np.flatnonzero(particles.ids == identity)[0]) for identity in evidence["pair_ids"]])
    with ImageSource(particles) as source:
        images = source.read(rows)
    subtract_background(images, outside_circle(48))
    assert np.allclose(evidence["recorded"], images / images.std(axis=(1, 2), keepdims=True), atol=0.01)
    defocus = 0.5e-4 * (particles.defocus_u_in_angstroms + particles.defocus_v_in_angstroms)
    assert np.allclose(evidence["pair_defocus"], defocus[rows])
    assert np.all(np.diff(evidence["pair_defocus"]) > 0)


def test_filtered_and_predicted_images_agree(evidence: Evidence) -> None:
    filtered, predicted = (evidence[name].astype(float) for name in ("filtered", "predicted"))
    assert np.all(evidence["pair_correlation"] > 0.3)
    slope = np.sum(filtered * predicted) / np.sum(predicted * predicted)
    assert slope == pytest.approx(1, abs=0.15)
    shuffled = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(filtered, np.roll(predicted, 1, 0), strict=True)
    ]
    assert np.mean(shuffled) < np.mean(evidence["pair_correlation"]) - 0.08


def test_the_mean_ctf_is_that_of_the_formula(
    reconstructed: tuple[Reconstruction, Reporter], evidence: Evidence
) -> None:
    particles = reconstructed[0].particles
    s2 = evidence["frequency"] ** 2
    defocus = 0.5 * (particles.defocus_u_in_angstroms + particles.defocus_v_in_angstroms)[:, None]
    chi = np.pi * WAVELENGTH * defocus * s2 - 0.5 * np.pi * 2.7e7 * WAVELENGTH**3 * s2**2
    expected = np.mean(np.sin(chi + np.arcsin(0.1)) ** 2, axis=0)
    inner = slice(2, 12)  # beyond, a shell is wider than the CTF's oscillations
    assert np.allclose(evidence["ctf_mean"][inner], expected[inner], atol=0.06)


def test_counts_and_spectra(reconstructed: tuple[Reconstruction, Reporter], evidence: Evidence) -> None:
    assert evidence["directions"].sum() == 600
    assert evidence["defocus_counts"].sum() == 600
    assert 0.7 < float(evidence["efficiency"]) <= 1.01
    noise = evidence["noise"][0, 3:]
    assert np.all(np.abs(noise / noise.mean() - 1) < 0.1)  # it was made white
    for number, half in enumerate(reconstructed[0].halves, start=1):
        assert evidence[f"loss_{number}"].tolist() == half.history.losses


def test_tilt_series_show_their_least_damaged_images(reconstructed: tuple[Reconstruction, Reporter]) -> None:
    result, _ = reconstructed
    dose = np.tile(np.arange(10.0), 60) * 5
    found = gather_evidence(replace(result, particles=replace(result.particles, pre_exposure=dose)))
    rows = [int(np.flatnonzero(result.particles.ids == identity)[0]) for identity in found["pair_ids"]]
    assert dose[rows].max() <= 10
