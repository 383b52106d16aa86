"""A particle of a few Gaussian blobs, whose Fourier transform is known in closed form, and polar images of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emsplat.abinitio.polar import PolarGrid, PolarImages

BOX = 32  # pixels of the images, whose units 1/BOX the rings have
CENTRES = np.array(
    [[6.5, 0, 0], [-4, 3, 1], [0, -6, 3], [1, 2, -7], [-3, -3, -4], [3, 5, 4], [-6, -1, 2], [2, -3, 6.5]], np.float64
)
MASSES = np.array([3.0, 1.0, 2.0, 1.5, 1.0, 2.5, 0.8, 1.7])
WIDTH = 1.2


def transform_at(points: NDArray[np.float64]) -> NDArray[np.complex128]:
    """(...) at points (..., 3) x, y, z in units of 1/BOX, about the origin."""
    phases = np.exp(-2j * np.pi * points @ CENTRES.T / BOX)
    envelope = np.exp(-2 * np.pi**2 * WIDTH**2 * (points**2).sum(axis=-1) / BOX**2)
    return envelope * (phases @ MASSES)


def map_of(box_size: int) -> NDArray[np.float32]:
    """(N, N, N) the density on a grid that spans the box, scaled so that its transform is `transform_at`."""
    axis = (np.arange(box_size) - box_size // 2) * (BOX / box_size)
    volume = np.zeros((box_size,) * 3)
    for centre, mass in zip(CENTRES, MASSES, strict=True):
        x, y, z = (np.exp(-0.5 * ((axis - c) / WIDTH) ** 2) / np.sqrt(2 * np.pi * WIDTH**2) for c in centre)
        volume += mass * z[:, None, None] * y[:, None] * x
    return (volume * (BOX / box_size) ** 3).astype(np.float32)


def slices_at(grid: PolarGrid, rotations: NDArray[np.float64]) -> NDArray[np.complex128]:
    """(n, R, Q) exact slices in these poses."""
    points = grid.points
    in_volume = np.einsum("rqc,ncx->nrqx", points, rotations[:, :2])
    return transform_at(in_volume)


def images_of(
    grid: PolarGrid,
    rotations: NDArray[np.float64],
    centres: NDArray[np.float64],
    weight: float,
    rng: np.random.Generator,
) -> PolarImages:
    """Images without CTF in noise of power 1/weight a Fourier pixel; see `imitation.images_of` for the noise."""
    clean = slices_at(grid, rotations)
    phases = np.exp(-2j * np.pi * np.einsum("rqc,nc->nrq", grid.points, centres) / BOX)
    noise = (rng.normal(size=clean.shape) + 1j * rng.normal(size=clean.shape)) / np.sqrt(2)
    amplitude = np.sqrt(weight * grid.n_angles / (np.pi * grid.radii))[:, None]
    signal = (weight * clean * phases + amplitude * noise).astype(np.complex64)
    return PolarImages(grid, signal, np.full((len(rotations), grid.n_rings), weight, np.float32))


def signal_power(grid: PolarGrid, rng: np.random.Generator) -> NDArray[np.float64]:
    """(R,) mean power of slices."""
    from scipy.spatial.transform import Rotation

    return (np.abs(slices_at(grid, Rotation.random(60, random_state=rng).as_matrix())) ** 2).mean(axis=(0, 2))
