from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_sums import direct_gradient, gradient_of, one_set, two_kinds
from emsplat.fourier.maps import fourier_resize, half_spectrum, radius, soft_sphere
from emsplat.fourier.slices import fourier_volume
from emsplat.optics.ctf import ctf
from emsplat.particles.table import Particles
from emsplat.simulation.run import signal_images
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.symmetry import symmetry_operators
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, accumulated, imagined_particles, lopsided_map

IDENTITY = np.eye(3)[None]


def flat(
    particles: Particles, box_size: int, reach: int | None = None, symmetry: NDArray = IDENTITY
) -> AccumulationSettings:
    """Noise of power 1 everywhere."""
    noise = np.ones((len(particles.optics), particles.box_size // 2 + 1))
    return AccumulationSettings(box_size, reach or 2 * box_size, noise, symmetry)


@pytest.mark.parametrize("box_size", [12, 13])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_the_gradient_is_that_of_the_images_one_by_one(box_size: int, premultiplied: bool) -> None:
    rng = np.random.default_rng(0)
    particles = two_kinds(imagined_particles(8, box_size), premultiplied)
    images = (rng.standard_normal((8, box_size, box_size)) + 3).astype(np.float32)
    noise = rng.uniform(0.5, 2, (2, box_size // 2 + 1)) * [[1], [3]]
    settings = AccumulationSettings(box_size, 2 * box_size, noise, IDENTITY)
    [s] = accumulated(particles, ImagesInMemory(images), one_set(particles), settings)
    assert s.n_images == 8
    volume = 0.1 * rng.standard_normal((box_size,) * 3)
    expected = direct_gradient(volume, images, particles, noise)
    nothing = direct_gradient(0 * volume, images, particles, noise)
    for got, wanted in ((-s.backprojection, nothing), (gradient_of(s, volume) + s.backprojection, expected - nothing)):
        assert np.linalg.norm(got - wanted) < 5e-3 * np.linalg.norm(wanted)
    assert np.linalg.norm(gradient_of(s, volume) - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("images_at_once", [1, 3, 100])
def test_parts_add_up(images_at_once: int) -> None:
    """Also where a block holds no image of some part, and some images belong to none."""
    particles = imagined_particles(9, 16)
    images = ImagesInMemory(np.random.default_rng(1).standard_normal((9, 16, 16)).astype(np.float32))
    settings = flat(particles, 16)
    subset = np.array([0, 0, 0, 1, 1, 1, 1, -1, 3], dtype=np.int8)
    [whole] = accumulated(particles, images, np.where(subset < 0, -1, 0), settings)
    settings = replace(settings, block_bytes=4 * 16**2 * images_at_once)
    done: list[int] = []
    parts = accumulated(particles, images, subset, settings, done.append)
    assert [p.n_images for p in parts] == [3, 4, 0, 1]
    assert done[-1] == 8
    assert not parts[2].backprojection.any()
    total = parts[0] + parts[1] + parts[2] + parts[3]
    assert total.n_images == whole.n_images == 8
    for name in ("backprojection", "kernel"):
        got, expected = getattr(total, name), getattr(whole, name)
        assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)


def test_no_image_at_all_is_no_error() -> None:
    particles = imagined_particles(2, 16)
    images = ImagesInMemory(np.ones((2, 16, 16), dtype=np.float32))
    assert accumulated(particles, images, one_set(particles) - 1, flat(particles, 16)) == []


@pytest.mark.parametrize("box_size", [48, 49])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_without_noise_the_raw_map_is_the_truth(box_size: int, premultiplied: bool) -> None:
    """Within the sphere, and with so many images that every voxel was seen often: a quotient's errors are elsewhere."""
    truth = lopsided_map(box_size)
    particles = imagined_particles(1000, box_size, pixel_size=4.0)
    images = signal_images(fourier_volume(truth), particles)
    if premultiplied:
        particles = replace(particles, optics=(replace(particles.optics[0], premultiplied=True),))
        spectra = np.fft.rfft2(images) * ctf(particles)
        images = np.fft.irfft2(spectra, s=images.shape[1:]).astype(np.float32)
    [s] = accumulated(particles, ImagesInMemory(images), one_set(particles), flat(particles, box_size))
    reach, sphere = int(0.8 * (box_size // 2)), soft_sphere(box_size, 0.8 * box_size, 4.0)
    assert fsc(s.raw_map(), truth, sphere)[:reach].min() > 0.99
    mirrored = np.roll(truth[:, :, ::-1], (box_size + 1) % 2, axis=2)
    assert fsc(s.raw_map(), mirrored, sphere)[3:reach].max() < 0.9


def turned_about_z(volume: NDArray) -> NDArray:
    """By 90° about the middle of an odd box."""
    return np.rot90(volume, axes=(1, 2))


def turned_about_x(volume: NDArray) -> NDArray:
    """By 180°."""
    return volume[::-1, ::-1]


@pytest.mark.parametrize(("group", "turns"), [("C4", [turned_about_z]), ("D4", [turned_about_z, turned_about_x])])
def test_statistics_take_on_the_symmetry(group: str, turns: list) -> None:
    particles = imagined_particles(5, 17)
    images = ImagesInMemory(np.random.default_rng(2).standard_normal((5, 17, 17)).astype(np.float32))
    [plain] = accumulated(particles, images, one_set(particles), flat(particles, 17))
    operators = symmetry_operators(group)
    [s] = accumulated(particles, images, one_set(particles), flat(particles, 17, symmetry=operators))
    for turn in turns:
        for symmetric, lopsided in (
            (s.backprojection, plain.backprojection),
            (s.kernel[1:, 1:, 1:], plain.kernel[1:, 1:, 1:]),
        ):
            assert np.linalg.norm(turn(symmetric) - symmetric) < 1e-2 * np.linalg.norm(symmetric)
            assert np.linalg.norm(turn(lopsided) - lopsided) > 0.1 * np.linalg.norm(lopsided)
    # An average, not a sum: the invariant part of the plain statistics.
    assert s.kernel[17, 17, 17] == pytest.approx(plain.kernel[17, 17, 17], rel=1e-2)
    assert s.n_images == 5


@pytest.mark.parametrize(("box_size", "working"), [(40, 28), (41, 28), (40, 27)])
def test_a_smaller_working_box_holds_the_same_low_frequencies(box_size: int, working: int) -> None:
    """In the units of the map, whatever the box."""
    truth = lopsided_map(box_size)
    particles = two_kinds(imagined_particles(1000, box_size, pixel_size=4.0), premultiplied=False)
    images = ImagesInMemory(signal_images(fourier_volume(truth), particles))
    maps = [
        accumulated(particles, images, one_set(particles), flat(particles, size))[0].raw_map()
        for size in (box_size, working)
    ]
    expected, sphere = fourier_resize(maps[0], working), soft_sphere(working, 0.8 * working, 3.0)
    assert fsc(maps[1], expected, sphere)[: int(0.8 * (working // 2))].min() > 0.995
    low = radius(working) < 0.8 * (working // 2)
    got, wanted = (half_spectrum(volume * sphere)[low] for volume in (maps[1], expected))
    assert np.vdot(wanted, got).real / np.vdot(wanted, wanted).real == pytest.approx(1, abs=0.01)
