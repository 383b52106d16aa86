from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.imaging.noise import noise_spectra, shell_means
from emsplat.optics.ctf import ctf
from emsplat.simulation.run import coloured_spectrum, noise_images
from phantom import imagined_particles


@pytest.mark.parametrize("box_size", [48, 49])
@pytest.mark.parametrize("kind", ["white", "coloured"])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_the_spectrum_is_recovered(box_size: int, kind: str, premultiplied: bool) -> None:
    """Of two groups of different strength, from beside a particle much stronger than the noise."""
    n, pixel_size = 800, 2.0
    particles = imagined_particles(n, box_size, pixel_size)
    groups = tuple(replace(particles.optics[0], name=name, premultiplied=premultiplied) for name in "ab")
    particles = replace(particles, optics=groups, optics_group=np.arange(n, dtype=np.int32) % 2)
    images = noise_images(np.random.default_rng(0), n, box_size, pixel_size, kind)
    images[1::2] *= 3
    if premultiplied:
        images = np.fft.irfft2(np.fft.rfft2(images) * ctf(particles), s=(box_size, box_size))
        images = images.astype(np.float32)
    middle = slice(box_size // 2 - 6, box_size // 2 + 6)
    images[:, middle, middle] += 20
    images += 7  # a background
    subtract_background(images, outside_circle(box_size))
    spectra = noise_spectra(images, particles)
    power = coloured_spectrum(box_size, pixel_size) if kind == "coloured" else np.ones((box_size, box_size))
    expected = box_size**2 * shell_means(power[:, : box_size // 2 + 1], box_size)
    assert spectra.shape == (2, box_size // 2 + 1)
    # The lowest shells lose what the background subtraction takes, and the window smears the others.
    for spectrum, scale in zip(spectra, (1, 9), strict=True):
        ratio = spectrum[3:] / (scale * expected[3:])
        assert ratio.mean() == pytest.approx(1, abs=0.03)
        assert np.abs(ratio - 1).max() < 0.1


@pytest.mark.parametrize("box_size", [16, 33, 64])
def test_the_background_is_the_plane_outside_the_circle(box_size: int) -> None:
    rng = np.random.default_rng(1)
    window = outside_circle(box_size)
    y, x = np.mgrid[:box_size, :box_size]
    level, along_x, along_y = np.array([[5, -2, 100], [0.3, 0, -1], [0, 0.2, 2]])[..., None, None]
    noise = rng.standard_normal((3, box_size, box_size)).astype(np.float32)
    terms = np.stack([np.ones(x.shape), x, y], axis=-1).reshape(-1, 3)
    root = np.sqrt(window.ravel())
    fit = np.linalg.lstsq(terms * root[:, None], (noise.reshape(3, -1) * root).T, rcond=None)[0]
    expected = noise - (terms @ fit).T.reshape(noise.shape)
    images = (noise + level + along_x * x + along_y * y).astype(np.float32)
    subtract_background(images, window)
    assert np.abs(images - expected).max() < 2e-4
    again = images.copy()
    subtract_background(again, window)
    assert np.abs(again - images).max() < 1e-4
    assert window[box_size // 2, box_size // 2] == 0
    assert window[0, 0] == 1


def test_a_group_the_sample_missed_borrows_a_spectrum() -> None:
    particles = imagined_particles(20, 32)
    particles = replace(particles, optics=particles.optics * 2)
    images = np.random.default_rng(2).standard_normal((20, 32, 32)).astype(np.float32)
    spectra = noise_spectra(images, particles)
    np.testing.assert_array_equal(spectra[1], spectra[0])
    assert (spectra > 0).all()
