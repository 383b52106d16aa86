"""Contrast, size and centre of the small map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emsplat.check.inversion import QuickMap, SmallData, gather_parts, map_findings, quarters, quick_map
from emsplat.fourier.slices import fourier_volume
from emsplat.imaging.noise import noise_spectra
from emsplat.io.mrc import read_map
from emsplat.simulation.run import noise_images, signal_images
from emsplat.validation.correlation import fsc
from phantom import imagined_particles, lopsided_map

ALONE = np.eye(3)[None]
BOX, PIXEL_SIZE = 36, 4.0


def map_of(data: SmallData) -> QuickMap:
    parts = gather_parts(data, quarters(data.particles.particle, 0), ALONE)
    return quick_map(parts, data.particles.pixel_size_in_angstroms)


def images_of(volume: np.ndarray, n: int = 300) -> SmallData:
    """Nearly clean images of a volume."""
    particles = imagined_particles(n, len(volume), PIXEL_SIZE)
    images = signal_images(fourier_volume(volume), particles)
    images += images.std() * noise_images(np.random.default_rng(0), n, len(volume), PIXEL_SIZE, "white")
    return SmallData(particles, images, noise_spectra(images, particles))


def test_the_map_is_that_of_the_particle(tiny: Path, small: SmallData) -> None:
    found = map_of(small)
    truth = read_map(tiny / "truth.mrc").values
    assert fsc(found.map, truth)[:6].min() > 0.8
    assert found.contrast_is_sure and found.skewness > 0
    assert [finding.verdict for finding in map_findings(found, False, 160.0)] == ["fine", "fine"]


@pytest.mark.parametrize("invert", [False, True])
def test_dark_particles(invert: bool, small: SmallData) -> None:
    found = map_of(replace(small, images=-small.images))
    finding = map_findings(found, invert, 160.0)[0]
    assert finding.verdict == "problem"
    assert finding.advice == ("leave out --invert" if invert else "use --invert")
    assert found.diameter == pytest.approx(map_of(small).diameter)


@pytest.mark.parametrize("shift", [(0, 0, 0), (3, -5, 4)])
def test_the_centre_of_mass_is_found(shift: tuple[int, int, int], small: SmallData) -> None:
    """A helix moved by x, y, z voxels."""
    volume = np.roll(lopsided_map(BOX) * 0.5, shift[::-1], axis=(0, 1, 2))
    found = map_of(images_of(volume))
    axis = (np.arange(BOX) - BOX // 2) * PIXEL_SIZE
    expected = [volume.sum(axis=across) @ axis / volume.sum() for across in ((0, 1), (0, 2), (1, 2))]
    assert found.centre is not None
    assert np.abs(np.subtract(found.centre, expected)).max() < 0.75 * PIXEL_SIZE
    verdict = map_findings(found, False, BOX * PIXEL_SIZE)[1].verdict
    assert (verdict == "problem") == (shift != (0, 0, 0))


def test_noise_has_neither_contrast_nor_outline(small: SmallData) -> None:
    images = np.random.default_rng(0).standard_normal(small.images.shape).astype(np.float32)
    found = map_of(replace(small, images=images, noise=noise_spectra(images, small.particles)))
    assert not found.contrast_is_sure
    assert [finding.verdict for finding in map_findings(found, False, 160.0)] == ["note", "note"]
