from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from emsplat.fourier.maps import fourier_resize, half_spectrum, radius, soft_sphere
from emsplat.fourier.slices import fourier_volume
from emsplat.imaging.aberrations import antisymmetric_phase
from emsplat.imaging.ctf import ctf
from emsplat.particles.table import Particles
from emsplat.simulation.run import signal_images
from emsplat.statistics import accumulate as statistics
from emsplat.statistics.accumulate import PassSettings, Statistics, gather_statistics
from emsplat.symmetry import symmetry_operators
from emsplat.validation.correlation import fsc
from phantom import ImagesInMemory, imagined_particles, lopsided_map

IDENTITY = np.eye(3)[None]


def flat(particles: Particles, box_size: int, reach: int | None = None, symmetry: NDArray = IDENTITY) -> PassSettings:
    """Noise of power 1 everywhere."""
    noise = np.ones((len(particles.optics), particles.box_size // 2 + 1))
    return PassSettings(box_size, reach or 2 * box_size, noise, symmetry)


def one_set(particles: Particles) -> NDArray[np.int8]:
    return np.zeros(len(particles), dtype=np.int8)


# Of some radians at Nyquist's frequency where pixels are of 2 Å.
ABERRATIONS = {
    "beam_tilt_in_milliradians": (3.0, -2.0),
    "odd_zernike": (1.0, 0.0, 80.0, 0.0, 0.0, -50.0),
    "even_zernike": (0.3, 0.0, 20.0, -10.0),
    "magnification": (1.1, 0.05, -0.03, 0.92),
}


def two_kinds(particles: Particles, premultiplied: bool) -> Particles:
    """Every other image from a second optics group of another voltage, aberrated, and perhaps premultiplied."""
    first = particles.optics[0]
    second = replace(first, name="other", voltage_in_kilovolts=200.0, premultiplied=premultiplied, **ABERRATIONS)
    return replace(particles, optics=(first, second), optics_group=np.arange(len(particles), dtype=np.int32) % 2)


def direct_gradient(volume: NDArray, images: NDArray, particles: Particles, noise: NDArray) -> NDArray[np.float64]:
    """Σ Pᵀ W² C (C P V − y), image by image, sample by sample, in float64; Pᵀ W² (C² P V − y′) if premultiplied."""
    box_size = particles.box_size
    place = np.arange(box_size) - box_size // 2
    k = np.fft.fftfreq(box_size, 1 / box_size)
    kx, ky = (a.ravel() for a in np.meshgrid(k, k))
    step = 1 / (box_size * particles.pixel_size_in_angstroms)
    transfer = ctf(particles).astype(np.float64)
    centres = box_size // 2 - particles.origin_in_angstroms / particles.pixel_size_in_angstroms
    gradient = np.zeros((box_size,) * 3)
    all_kx, all_ky = kx, ky
    for i, a in enumerate(particles.rotations()):
        m = np.reshape(particles.optics[particles.optics_group[i]].magnification, (2, 2))
        shell, in_volume = (np.hypot(*(n @ [all_kx, all_ky])) for n in (np.eye(2), m))
        known = (shell > 0) & (shell < box_size / 2) & (in_volume < box_size / 2)
        kx, ky, shell = all_kx[known], all_ky[known], shell[known]
        mx, my = m @ [kx, ky]
        waves = [np.exp(-2j * np.pi / box_size * np.outer(mx * a[0, j] + my * a[1, j], place)) for j in range(3)]
        x, y, z = waves
        projection = np.einsum("kx,ky,kz,zyx->k", x, y, z, volume, optimize=True)
        group = particles.optics_group[i]
        weight = np.interp(shell, np.arange(noise.shape[1]), 1 / noise[group])
        rows, columns = np.where(kx < 0, -ky, ky).astype(int) % box_size, np.abs(kx).astype(int)
        c = transfer[i][rows, columns]  # even in k
        # The spectrum about the particle's centre.
        towards = np.exp(2j * np.pi / box_size * (kx * centres[i, 0] + ky * centres[i, 1]))
        seen = np.fft.fft2(images[i].astype(np.float64))[ky.astype(int), kx.astype(int)] * towards
        seen *= np.exp(-1j * antisymmetric_phase(particles.optics[group], kx * step, ky * step))
        back = weight * (c * c * projection - (1 if particles.optics[group].premultiplied else c) * seen)
        gradient += np.einsum("k,kx,ky,kz->zyx", back, x.conj(), y.conj(), z.conj(), optimize=True).real
    return gradient


def gradient_of(s: Statistics, volume: NDArray) -> NDArray[np.float64]:
    """T∗V − b where T, r from −e, is exact over the whole box."""
    e, d = s.kernel.shape[0] // 2, s.box_size
    full = fftconvolve(volume.astype(np.float64), s.kernel.astype(np.float64))
    return full[e : e + d, e : e + d, e : e + d] - s.adjoint


@pytest.mark.parametrize("box_size", [12, 13])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_the_gradient_is_that_of_the_images_one_by_one(box_size: int, premultiplied: bool) -> None:
    rng = np.random.default_rng(0)
    particles = two_kinds(imagined_particles(8, box_size), premultiplied)
    images = (rng.standard_normal((8, box_size, box_size)) + 3).astype(np.float32)
    noise = rng.uniform(0.5, 2, (2, box_size // 2 + 1)) * [[1], [3]]
    settings = PassSettings(box_size, 2 * box_size, noise, IDENTITY)
    [s] = gather_statistics(particles, ImagesInMemory(images), one_set(particles), settings)
    assert s.n_images == 8
    volume = 0.1 * rng.standard_normal((box_size,) * 3)
    expected = direct_gradient(volume, images, particles, noise)
    nothing = direct_gradient(0 * volume, images, particles, noise)
    for got, wanted in ((-s.adjoint, nothing), (gradient_of(s, volume) + s.adjoint, expected - nothing)):
        assert np.linalg.norm(got - wanted) < 5e-3 * np.linalg.norm(wanted)
    assert np.linalg.norm(gradient_of(s, volume) - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("images_at_once", [1, 3, 100])
def test_subsets_add_up(monkeypatch: pytest.MonkeyPatch, images_at_once: int) -> None:
    """Also where a block holds no image of some subset, and some images belong to none."""
    particles = imagined_particles(9, 16)
    images = ImagesInMemory(np.random.default_rng(1).standard_normal((9, 16, 16)).astype(np.float32))
    settings = flat(particles, 16)
    subset = np.array([0, 0, 0, 1, 1, 1, 1, -1, 3], dtype=np.int8)
    [whole] = gather_statistics(particles, images, np.where(subset < 0, -1, 0), settings)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 4 * 16**2 * images_at_once)
    done: list[int] = []
    parts = gather_statistics(particles, images, subset, settings, done.append)
    assert [p.n_images for p in parts] == [3, 4, 0, 1]
    assert done[-1] == 8
    assert not parts[2].adjoint.any()
    total = parts[0] + parts[1] + parts[2] + parts[3]
    assert total.n_images == whole.n_images == 8
    for name in ("adjoint", "kernel"):
        got, expected = getattr(total, name), getattr(whole, name)
        assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)


def test_no_image_at_all_is_no_error() -> None:
    particles = imagined_particles(2, 16)
    images = ImagesInMemory(np.ones((2, 16, 16), dtype=np.float32))
    assert gather_statistics(particles, images, one_set(particles) - 1, flat(particles, 16)) == []


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
    [s] = gather_statistics(particles, ImagesInMemory(images), one_set(particles), flat(particles, box_size))
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
    [plain] = gather_statistics(particles, images, one_set(particles), flat(particles, 17))
    operators = symmetry_operators(group)
    [s] = gather_statistics(particles, images, one_set(particles), flat(particles, 17, symmetry=operators))
    for turn in turns:
        for symmetric, lopsided in ((s.adjoint, plain.adjoint), (s.kernel[1:, 1:, 1:], plain.kernel[1:, 1:, 1:])):
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
        gather_statistics(particles, images, one_set(particles), flat(particles, size))[0].raw_map()
        for size in (box_size, working)
    ]
    expected, sphere = fourier_resize(maps[0], working), soft_sphere(working, 0.8 * working, 3.0)
    assert fsc(maps[1], expected, sphere)[: int(0.8 * (working // 2))].min() > 0.995
    low = radius(working) < 0.8 * (working // 2)
    got, wanted = (half_spectrum(volume * sphere)[low] for volume in (maps[1], expected))
    assert np.vdot(wanted, got).real / np.vdot(wanted, wanted).real == pytest.approx(1, abs=0.01)
