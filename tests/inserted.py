"""Slices that are inserted into a volume, and the sums in float64 that the grids are held against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emsplat.fourier.insertion import SliceGrid

EXTREME = np.array(
    [[r, t, p] for r in (0, 45, 90, -135) for t in (0, 45, 54.735610317245346, 90, 180) for p in (0, 45, 90)]
)


def random_slices(n: int, box_size: int, dtype: type, seed: int = 0) -> NDArray:
    """Half planes of real images' transforms: noise in the disc that insertion reads."""
    rng = np.random.default_rng(seed)
    spectra = np.fft.rfft2(rng.standard_normal((n, box_size, box_size)))
    if dtype is np.float32:  # even in k, as weights are
        return np.abs(spectra).astype(np.float32)
    return spectra.astype(np.complex64)


def magnified(rotations: NDArray, stretch: float = 1.2, seed: int = 9) -> NDArray:
    """B = Mᵀ A with M of determinant 1, another for every slice: stretched along a random axis, and turned."""
    angles = np.random.default_rng(seed).uniform(0, np.pi, (2, len(rotations)))
    u, v = (np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]).transpose(2, 0, 1) for t in angles)
    m = u @ np.diag([stretch, 1 / stretch]) @ v
    matrices = rotations.copy()
    matrices[:, :2] = m.transpose(0, 2, 1) @ rotations[:, :2]
    return matrices


def points_and_values(slices: NDArray, rotations: NDArray) -> tuple[NDArray, NDArray]:
    """Samples of the full planes as (n, 3) k_volume = Bᵀ (kx, ky, 0) in 1/D and their values; |k|, |k_volume| < D/2."""
    box_size = slices.shape[1]
    reach = (box_size - 1) // 2
    k = np.arange(-reach, reach + 1)
    ky, kx = (a.ravel() for a in np.meshgrid(k, k, indexing="ij"))
    disc = 4 * (kx**2 + ky**2) < box_size**2
    kx, ky = kx[disc], ky[disc]
    sign = np.where(kx < 0, -1, 1)
    values = slices[:, sign * ky % box_size, np.abs(kx)]
    values = np.where(kx < 0, values.conj(), values)
    points = kx[:, None] * rotations[:, None, 0] + ky[:, None] * rotations[:, None, 1]
    points, values = points.reshape(-1, 3), values.ravel().astype(np.complex128)
    inside = 4 * np.sum(points**2, axis=1) < box_size**2 * (1 - 1e-9)
    return points[inside], values[inside]


def direct_sum(points: NDArray, values: NDArray, extent: int, box_size: int) -> NDArray[np.float64]:
    """(extent,)*3 Σ value exp(+2πi k·r/D), r from −(extent//2), in float64."""
    r = np.arange(extent) - extent // 2
    x, y, z = np.exp(2j * np.pi / box_size * points.T[:, :, None] * r)
    return np.einsum("n,nz,ny,nx->zyx", values, z, y, x, optimize=True).real


def within_sphere(extent: int) -> NDArray[np.bool_]:
    r = np.arange(extent) - extent // 2
    return np.sqrt(r[:, None, None] ** 2 + r[:, None] ** 2 + r**2) < extent / 2


def filled(extent: int, slices: NDArray, rotations: NDArray) -> SliceGrid:
    grid = SliceGrid.empty(extent, slices.shape[1], slices.dtype.type)
    grid.insert(slices, rotations)
    return grid
