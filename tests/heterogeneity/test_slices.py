"""Slices of many volumes, and how the first one's change with the pose, against Fourier sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.heterogeneity.slices import Volumes, add_pose_columns, half_plane, residual_slices

RNG = np.random.default_rng(0)


def blob(box_size: int) -> NDArray[np.float32]:
    """Some Gaussians within the inner half of the box."""
    x = np.arange(box_size) - box_size // 2
    volume = np.zeros((box_size,) * 3)
    for centre in RNG.normal(0, box_size / 10, (5, 3)):
        distance = sum(
            (x.reshape(shape) - c) ** 2 for shape, c in zip(((-1, 1, 1), (-1, 1), (-1,)), centre, strict=True)
        )
        volume += np.exp(-0.5 * distance / 2.0)
    return volume.astype(np.float32)


def transform(volume: NDArray[np.float32], k: NDArray[np.float64]) -> NDArray[np.complex128]:
    """(m,) F(k) = Σ V(r) exp(−2πi k·r/D), k (m, 3) x, y, z in units of 1/D, r from voxel D//2."""
    box_size = len(volume)
    x = np.arange(box_size) - box_size // 2
    waves = [np.exp(-2j * np.pi * np.outer(k[:, axis], x) / box_size) for axis in range(3)]
    return np.einsum("zyx,mx,my,mz->m", volume.astype(np.float64), *waves, optimize=True)


def as_complex(slices: NDArray[np.float32]) -> NDArray[np.complex128]:
    return slices[:, :, 0] + 1j * slices[:, :, 1].astype(np.float64)


@pytest.mark.parametrize("box_size", [16, 21])
def test_slices_are_fourier_sums(box_size: int) -> None:
    volumes = [blob(box_size) for _ in range(3)]
    matrices = Rotation.random(5, rng=1).as_matrix()
    samples = half_plane(6)
    found = as_complex(Volumes.of(volumes).slices(matrices, samples))
    for i, a in enumerate(matrices):
        k = samples @ a[:2]
        for c, volume in enumerate(volumes):
            expected = transform(volume, k)
            assert np.linalg.norm(found[i, :, c] - expected) < 2e-3 * np.linalg.norm(expected)


def test_a_half_plane_holds_one_of_each_pair() -> None:
    samples = half_plane(7)
    both = {tuple(s) for s in samples.tolist()} | {tuple(s) for s in (-samples).tolist()}
    assert len(both) == 2 * len(samples)
    assert len(both) == sum(0 < kx**2 + ky**2 <= 49 for kx in range(-7, 8) for ky in range(-7, 8))
    assert samples[:, 0].min() >= 0


def test_pose_columns_are_derivatives_by_turns_and_shifts() -> None:
    box_size, step = 20, 1e-3
    volume = blob(box_size)
    x = (np.arange(box_size) - box_size // 2).astype(np.float32)
    matrices, samples = Rotation.random(3, rng=2).as_matrix(), half_plane(6)
    slices = Volumes.of([volume, volume * x, volume * x[:, None], volume * x[:, None, None]]).slices(matrices, samples)
    out = np.empty((*slices.shape[:3], 6), dtype=np.float32)
    add_pose_columns(slices, matrices, samples, box_size, out)
    found = as_complex(out)
    np.testing.assert_array_equal(out[..., 0], slices[..., 0])
    for i, a in enumerate(matrices):
        for axis in range(3):
            turned = [
                transform(volume, samples @ (Rotation.from_rotvec(sign * step * np.eye(3)[axis]).as_matrix() @ a)[:2])
                for sign in (1, -1)
            ]
            expected = (turned[0] - turned[1]) / (2 * step)
            # A prior that is even does not know the sign, which is that of the turn of the particle or of its frame.
            error = min(np.linalg.norm(found[i, :, 1 + axis] - s * expected) for s in (1, -1))
            assert error < 2e-2 * np.linalg.norm(expected)
        for axis in range(2):
            expected = -2j * np.pi * samples[:, axis] / box_size * transform(volume, samples @ a[:2])
            assert np.linalg.norm(found[i, :, 4 + axis] - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("box_size", [12, 13])
def test_residuals_are_what_the_columns_leave(box_size: int) -> None:
    n, samples = 3, half_plane(4)
    m = len(samples)
    columns = RNG.normal(size=(n, m, 2, 3)).astype(np.float32)
    spectra = (RNG.normal(size=(n, m)) + 1j * RNG.normal(size=(n, m))).astype(np.complex64)
    weights = RNG.uniform(size=(n, m)).astype(np.float32)
    of_data, of_columns = RNG.normal(size=(n, 2)).astype(np.float32), RNG.normal(size=(n, 2, 3)).astype(np.float32)
    out = np.zeros((2, n, box_size, box_size // 2 + 1), dtype=np.complex64)
    residual_slices(columns, samples, spectra, weights, of_data, of_columns, out)
    explained = np.einsum("nkl,nml->knm", of_columns, as_complex(columns))
    expected = of_data.T[:, :, None] * spectra - weights * explained
    np.testing.assert_allclose(out[:, :, samples[:, 1] % box_size, samples[:, 0]], expected, atol=1e-5)
    edge = samples[:, 0] == 0  # where the half plane holds both of a pair
    np.testing.assert_allclose(out[:, :, -samples[edge, 1] % box_size, 0], expected[:, :, edge].conj(), atol=1e-5)
