"""Volumes: shells, filters, masks, sharpening, resampling."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.fourier import maps


def noise(box_size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((box_size,) * 3, dtype=np.float32)


def ball(box_size: int, radii: tuple[float, float, float], shift: float = 0.0) -> np.ndarray:
    x = np.arange(box_size) - box_size // 2 - shift
    z, y, x = (axis / r for axis, r in zip(np.meshgrid(x, x, x, indexing="ij"), radii, strict=True))
    return (z**2 + y**2 + x**2 <= 1).astype(np.float32)


def full_shells(box_size: int) -> np.ndarray:
    k = np.fft.fftfreq(box_size) * box_size
    return np.rint(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)).astype(int)


@pytest.mark.parametrize("box_size", [2, 5, 6, 16, 17])
def test_shell_sums_agree_with_the_full_spectrum(box_size: int) -> None:
    a, b = noise(box_size), noise(box_size, 1)
    product = np.real(np.fft.fftn(a) * np.fft.fftn(b).conj())
    shells = full_shells(box_size).ravel()
    expected = np.bincount(shells, product.ravel())[: box_size // 2 + 1]
    found = maps.shell_correlation(maps.half_spectrum(a), maps.half_spectrum(b), box_size)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(product).sum())
    np.testing.assert_array_equal(maps.shell_size(box_size), np.bincount(shells)[: box_size // 2 + 1])


@pytest.mark.parametrize("box_size", [16, 17])
def test_a_filter_of_ones_changes_nothing_and_zero_beyond_its_end(box_size: int) -> None:
    volume = noise(box_size)
    np.testing.assert_allclose(maps.radial_filter(volume, np.ones(2 * box_size)), volume, atol=1e-5)
    cut = np.fft.fftn(maps.radial_filter(volume, np.ones(5)))
    assert np.abs(cut[full_shells(box_size) > 5]).max() < 1e-3
    kept = full_shells(box_size) <= 3
    np.testing.assert_allclose(cut[kept], np.fft.fftn(volume)[kept], atol=1e-3)


def test_a_filter_is_linear_between_shells() -> None:
    volume = np.zeros((16,) * 3, dtype=np.float32)
    volume[8, 8, 8] = 1.0
    spectrum = maps.half_spectrum(maps.radial_filter(volume, np.array([1.0, 3.0, 2.0])))
    assert spectrum[0, 1, 1].real == pytest.approx(3 - (np.sqrt(2) - 1), abs=1e-6)


def test_low_pass_keeps_the_mean_and_removes_detail() -> None:
    volume = noise(32) + 1
    smooth = maps.low_pass(volume, 2.0, 20.0)
    assert smooth.mean() == pytest.approx(volume.mean(), abs=1e-5)
    power = np.abs(np.fft.fftn(smooth)) ** 2
    assert power[full_shells(32) > 32 * 2 / 20 + 2].max() < 1e-6 * power[full_shells(32) == 1].max()


@pytest.mark.parametrize("box_size", [24, 25])
def test_soft_sphere_is_centred_and_has_its_volume(box_size: int) -> None:
    sphere = maps.soft_sphere(box_size, 12, 4)
    assert sphere[(box_size // 2,) * 3] == 1
    assert sphere[0, 0, 0] == 0
    x = np.arange(box_size) - box_size // 2
    assert abs((sphere.sum(axis=(0, 1)) * x).sum()) < 1e-2
    # Half of the edge counts: the sphere to the middle of the edge.
    assert sphere.sum() == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.06)


@pytest.mark.parametrize(
    ("box_size", "pixel_size", "radii", "shift"),
    [
        (32, 12.0, (11.0, 9.0, 10.0), 0.0),  # a ribosome across 22 px of 12 Å
        (33, 6.0, (9.0, 9.0, 9.0), 0.0),
        (96, 1.5, (12.0, 15.0, 34.0), 0.0),  # elongated
        (96, 1.5, (20.0, 20.0, 20.0), 8.0),  # off centre
    ],
)
@pytest.mark.parametrize("noise_level", [0.0, 1.0])
def test_mask_covers_the_particle_and_little_else(
    box_size: int, pixel_size: float, radii: tuple[float, float, float], shift: float, noise_level: float
) -> None:
    particle = ball(box_size, radii, shift)
    density = particle * (1 + 0.3 * noise(box_size, 1))
    mask = maps.soft_mask(density + noise_level * noise(box_size), pixel_size)
    extension, edge = maps.mask_margins(box_size)
    grown = ball(box_size, tuple(r + 2 * (extension + edge) + 2 for r in radii), shift)
    assert (mask * particle).sum() > 0.97 * particle.sum()
    assert mask[grown == 0].max(initial=0) < 0.05
    assert mask.min() >= 0
    assert mask.max() == pytest.approx(1)
    assert max(mask[0].max(), mask[:, 0].max(), mask[..., -1].max()) < 0.05


def test_mask_fills_holes_and_drops_specks() -> None:
    shell = ball(64, (20, 20, 20)) - ball(64, (11, 11, 11))
    speck = ball(64, (3, 3, 3), shift=15.5)
    mask = maps.soft_mask(shell + speck + 0.2 * noise(64), 2.0)
    assert mask[32, 32, 32] == 1
    assert mask[47, 47, 47] == 0


@pytest.mark.parametrize("box_size", [32, 65])
def test_mask_of_noise_is_a_sphere(box_size: int) -> None:
    mask = maps.soft_mask(noise(box_size), 3.0)
    _, edge = maps.mask_margins(box_size)
    radius = min(0.425 * box_size, box_size // 2 - edge)
    np.testing.assert_array_equal(mask, maps.soft_sphere(box_size, 2 * radius, edge))
    np.testing.assert_array_equal(maps.soft_mask(np.zeros_like(mask), 3.0), mask)


@pytest.mark.parametrize("b_factor", [40.0, 120.0])
def test_b_factor_of_a_known_decay_is_found_and_undone(b_factor: float) -> None:
    box_size, pixel_size = 64, 1.2
    rng = np.random.default_rng(2)
    atoms = np.zeros((box_size,) * 3, dtype=np.float32)
    places = np.rint(rng.normal(box_size // 2, 8, (2000, 3))).astype(int) % box_size
    np.add.at(atoms, tuple(places.T), 1)
    blurred = maps.sharpen(atoms, b_factor, pixel_size)
    found = maps.estimate_b_factor(blurred, pixel_size, 3.0)
    assert found == pytest.approx(-b_factor, rel=0.1)
    again = maps.estimate_b_factor(maps.sharpen(blurred, found, pixel_size), pixel_size, 3.0)
    assert abs(again) < 1


@pytest.mark.parametrize("resolution", [None, 9.0, 25.0])
def test_no_b_factor_without_resolution(resolution: float | None) -> None:
    assert maps.estimate_b_factor(noise(48), 1.5, resolution) is None


@pytest.mark.parametrize(("small", "large"), [(16, 24), (17, 24), (16, 25), (17, 25)])
def test_resizing_there_and_back_keeps_a_band_limited_volume(small: int, large: int) -> None:
    volume = maps.radial_filter(noise(small), np.ones(small // 2 - 1))
    padded = maps.fourier_resize(volume, large)
    assert padded.mean() == pytest.approx(volume.mean(), abs=1e-6)
    # The origin is a voxel of both grids.
    assert padded[(large // 2,) * 3] == pytest.approx(volume[(small // 2,) * 3], abs=1e-5)
    np.testing.assert_allclose(maps.fourier_resize(padded, small), volume, atol=1e-5)
