"""Gaussians on grids they were not fitted on, against their analytic Fourier transform."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emsplat.export.mrc import density_on_grid, write_density
from emsplat.models.gaussians import Gaussians


def analytic(gaussians: Gaussians, box_size: int, pixel_size: float) -> NDArray[np.complex128]:
    """Σ a exp(−2π i k·μ − 2π² kᵀ Σ k) on the grid's frequencies, (D, D, D) in fft order, x last."""
    k = np.fft.fftfreq(box_size, pixel_size)
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    vectors = np.stack([kx, ky, kz], axis=-1).reshape(-1, 3)
    total = np.zeros(len(vectors), dtype=np.complex128)
    mu, sigma = gaussians.centres.double().numpy(), gaussians.covariances().double().numpy()
    for mass, centre, covariance in zip(gaussians.masses().double().numpy(), mu, sigma, strict=True):
        damping = np.einsum("ni,ij,nj->n", vectors, covariance, vectors)
        total += mass * np.exp(-2j * np.pi * vectors @ centre - 2 * np.pi**2 * damping)
    return total.reshape((box_size,) * 3)


def transform(density: NDArray[np.float32], pixel_size: float) -> NDArray[np.complex128]:
    """As `analytic`, the origin at voxel D//2."""
    return np.fft.fftn(np.fft.ifftshift(density.astype(np.float64))) * pixel_size**3


@pytest.mark.parametrize(("box_size", "pixel_size"), [(40, 2.0), (33, 2.4), (24, 3.3), (21, 4.0), (96, 0.9)])
def test_finer_and_coarser_grids(box_size: int, pixel_size: float, some_gaussians: Callable) -> None:
    """Up to 0.8 of Nyquist within 2 %, though σ is down to 0.2 voxels; the model was made for voxels of 2 Å."""
    gaussians = some_gaussians(12, seed=box_size, narrowest=0.8)
    found = transform(density_on_grid(gaussians, box_size, pixel_size, 2.0), pixel_size)
    expected = analytic(gaussians, box_size, pixel_size)
    f = np.abs(np.fft.fftfreq(box_size))
    radius = np.sqrt(f[:, None, None] ** 2 + f[:, None] ** 2 + f**2)
    for low in np.arange(0.0, 0.4, 0.1):
        shell = (radius >= low) & (radius < low + 0.1)
        error = np.linalg.norm((found - expected)[shell]) / np.linalg.norm(expected[shell])
        assert error < 0.02, (low, error)


def test_a_small_box_cuts_and_a_large_one_pads(some_gaussians: Callable) -> None:
    gaussians = some_gaussians(30)
    whole = density_on_grid(gaussians, 41, 1.5, 1.5)
    cut = density_on_grid(gaussians, 16, 1.5, 1.5)
    padded = density_on_grid(gaussians, 60, 1.5, 1.5)
    peak = whole.max()
    assert np.abs(cut - whole[12:28, 12:28, 12:28]).max() < 2e-3 * peak
    assert np.abs(padded[10:51, 10:51, 10:51] - whole).max() < 2e-3 * peak
    assert abs(padded.sum(dtype=np.float64) * 1.5**3 / float(gaussians.masses().sum()) - 1) < 1e-3
    far_away = Gaussians(
        gaussians.centres + 500, *(getattr(gaussians, n) for n in ("log_scales", "quaternions", "log_masses"))
    )
    assert not density_on_grid(far_away, 16, 1.5, 1.5).any()


def test_the_header_places_it_over_the_runs_map(some_gaussians: Callable, tmp_path: Path) -> None:
    """The centre of mass in Å, counted from the first voxel of the run's map, does not depend on the grid."""
    gaussians = some_gaussians(20)
    centre = 33 // 2 * 2.0
    expected = np.average(gaussians.centres.double().numpy(), axis=0, weights=gaussians.masses().double().numpy())
    for box_size, pixel_size in ((33, 2.0), (40, 2.0), (71, 1.1), (30, 2.7)):
        shift = centre - box_size // 2 * pixel_size
        write_density(tmp_path / "map.mrc", gaussians, box_size, pixel_size, 2.0, shift)
        with mrcfile.open(tmp_path / "map.mrc") as file:
            density, header = file.data.astype(np.float64), file.header
            assert float(file.voxel_size.x) == pytest.approx(pixel_size, rel=1e-5)
            origin = np.array([float(header.origin[axis]) for axis in "xyz"])
        indices = np.indices(density.shape)[::-1].reshape(3, -1)  # x, y, z
        found = origin + pixel_size * (indices * density.ravel()).sum(axis=1) / density.sum()
        assert np.allclose(found, centre + expected, atol=0.2)


def test_a_grid_that_memory_cannot_hold(some_gaussians: Callable, refuses: Callable) -> None:
    with refuses("--box-size 3000", "GB"):
        density_on_grid(some_gaussians(1), 3000, 0.1, 2.0, memory_in_bytes=8e9)
    with refuses("--pixel-size 0.01"):  # a box that is small but cuts a model that is not
        density_on_grid(
            Gaussians(*(torch.zeros(1, n)[..., : n or None] for n in (3, 3, 4, 1))),
            3000,
            0.01,
            2.0,
            memory_in_bytes=8e9,
        )
