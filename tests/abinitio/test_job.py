"""Images without noise get some, masked ones do not; and images that say more than a grid can tell count less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray

from emsplat.abinitio.job import Job, said_of, table_of
from emsplat.abinitio.look import look_at
from emsplat.errors import InputError
from emsplat.io.images import ImageSource
from emsplat.particles.table import Particles
from emsplat.runtime.context import Context
from emsplat.runtime.reporting import Reporter
from emsplat.settings import AbInitioSettings

N, BOX = 90, 24
SETTINGS = AbInitioSettings(no_ctf=True, pixel_size=2.0)


def projections(rng: np.random.Generator) -> NDArray[np.float32]:
    """(N, D, D) spots within a circle, and exactly nothing outside of it."""
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    images = np.zeros((N, BOX, BOX), np.float32)
    for image in images:
        for _ in range(4):
            across, down = rng.uniform(-5, 5, 2)
            image += np.exp(-((x - across) ** 2 + (y - down) ** 2) / 4).astype(np.float32)
    return images * (np.hypot(x, y) < 10)


def table(images: NDArray[np.float32], folder: Path, reporter: Reporter) -> Particles:
    mrcfile.write(folder / "images.mrcs", images, overwrite=True)
    return table_of(said_of(folder / "images.mrcs", SETTINGS), SETTINGS, reporter)


def test_projections_without_noise_get_some(tmp_path: Path) -> None:
    rng, reporter = np.random.default_rng(1), Reporter()
    images = projections(rng)
    particles = table(images, tmp_path, reporter)
    assert any("hold no noise" in warning for warning in reporter.warnings)
    assert particles.added_noise == pytest.approx(np.sqrt(0.1 * images.var()), rel=0.2)
    with ImageSource(particles) as source:
        once, again = source.read(np.arange(N)), source.read(np.arange(N)[::-1])[::-1]
    np.testing.assert_array_equal(once, again)
    added = once - images
    assert added.std() == pytest.approx(particles.added_noise, rel=0.02)
    assert abs(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1]) < 0.2


def test_a_blank_image_among_them_is_refused(tmp_path: Path, refuses: Callable) -> None:
    images = projections(np.random.default_rng(1))
    images = np.concatenate([images, images])
    looked_at = np.linspace(0, len(images) - 1, 100).astype(int)  # to see whether there is noise
    blank = np.setdiff1d(np.arange(len(images)), looked_at)[:1]
    images[blank] = 0
    particles = table(images, tmp_path, Reporter())
    assert particles.added_noise > 0
    with ImageSource(particles) as source, refuses(f"{blank[0] + 1}@", "constant image", "--drop"):
        source.read(np.arange(len(images)))


def test_masked_images_with_noise_do_not(tmp_path: Path) -> None:
    rng, reporter = np.random.default_rng(2), Reporter()
    images = projections(rng)
    noisy = np.where(images > 0, images + rng.normal(size=images.shape), 0).astype(np.float32)
    assert table(noisy, tmp_path, reporter).added_noise == 0
    assert table(images + 0.01 * rng.normal(size=images.shape).astype(np.float32), tmp_path, reporter).added_noise == 0


def test_images_that_say_too_much_count_less(tmp_path: Path) -> None:
    rng, reporter = np.random.default_rng(3), Reporter()
    images = projections(rng)
    weights, powers = [], []
    for noise in (0.002, 1.0):
        noisy = images + noise * rng.normal(size=images.shape).astype(np.float32)
        particles = table(noisy, tmp_path, reporter)
        with ImageSource(particles) as source:
            look = look_at(particles, source, 0)
            job = Job(particles, source, look, 36.0, SETTINGS, Context(reporter=reporter))
            halves, spectra = job.read(8)
        weights.append(job.weight)
        powers.append(float(halves[0].power.mean()))
        _, nats = job.search(halves, spectra)
        assert nats <= 201
    assert weights[0] < 0.1 and weights[1] == 1
    assert powers[0] < 20 * powers[1]


def test_too_coarse_a_resolution_is_refused(tmp_path: Path) -> None:
    rng, reporter = np.random.default_rng(3), Reporter()
    images = projections(rng) + rng.normal(size=(N, BOX, BOX)).astype(np.float32)
    particles, settings = table(images, tmp_path, reporter), replace(SETTINGS, max_resolution=16.0)
    with ImageSource(particles) as source:
        look = look_at(particles, source, 0)
        with pytest.raises(InputError, match=r"--max-resolution 16 leaves 3 rings .* give 12 Å or less"):
            Job(particles, source, look, 36.0, settings, Context(reporter=reporter))
