"""Images on polar grids against their analytic transforms, and what a sample shows without poses."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.abinitio.look import look_at
from emsplat.abinitio.polar import PolarGrid, read_polar
from phantom import ImagesInMemory, imagined_particles


def blob(box_size: int, x: float, y: float, width: float) -> NDArray[np.float32]:
    """(D, D) Gaussian of mass 1 at x, y pixels from pixel D//2."""
    axis = np.arange(box_size) - box_size // 2
    along_x, along_y = (np.exp(-0.5 * ((axis - c) / width) ** 2) for c in (x, y))
    return (along_y[:, None] * along_x / (2 * np.pi * width**2)).astype(np.float32)


@pytest.mark.parametrize("box_size", [48, 45])
def test_a_blob_has_its_analytic_transform_on_every_ring(box_size: int) -> None:
    particles = imagined_particles(2, box_size).without_ctf()
    places = np.array([[3.3, -2.2], [-4.1, 0.7]])
    images = ImagesInMemory(np.array([blob(box_size, x, y, 2.0) for x, y in places]))
    noise = np.full((1, box_size // 2 + 1), 4.0)
    grid = PolarGrid.of(9, 0.7)
    found, spectra = read_polar(particles, images, np.arange(2), noise, grid, 0.85 * box_size)
    phases = np.exp(-2j * np.pi * np.einsum("rqc,nc->nrq", grid.points, places) / box_size)
    envelope = np.exp(-2 * np.pi**2 * 4.0 * (grid.radii / box_size) ** 2)
    # Without the mean of the image, which is no part of the particle, and of the noise's power.
    assert found.signal == pytest.approx(envelope[:, None] * phases / 4.0, abs=4e-3)
    assert found.power == pytest.approx(np.full((2, 9), 0.25), rel=1e-5)
    assert spectra.ctf_power == pytest.approx(np.ones(9), rel=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_sample_shows_diameter_and_contrast(sign: float) -> None:
    box_size, n = 48, 500
    rng = np.random.default_rng(5)
    particles = imagined_particles(n, box_size).without_ctf()
    angle = rng.uniform(0, 2 * np.pi, n)
    signal = [blob(box_size, 9 * np.cos(a), 9 * np.sin(a), 3.0) + blob(box_size, 0, 0, 3.0) for a in angle]
    noise = 0.02 * rng.normal(size=(n, box_size, box_size))
    look = look_at(particles, ImagesInMemory((sign * np.array(signal) + noise).astype(np.float32)), 0)
    assert look.diameter is not None and 24 <= look.diameter <= 40  # 9 + 2σ on either side
    assert look.surely_white if sign > 0 else look.surely_dark


def test_noise_shows_neither() -> None:
    noise = np.random.default_rng(6).normal(size=(500, 48, 48)).astype(np.float32)
    look = look_at(imagined_particles(500, 48).without_ctf(), ImagesInMemory(noise), 0)
    assert look.diameter is None and not look.surely_white and not look.surely_dark
