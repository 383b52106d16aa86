"""Central slices of a volume's Fourier transform, exact to single precision.

The transform ``F(k) = Σ_r V(r) exp(−2πi k·r / D)`` is needed at points k off the grid. The volume is divided by the
transform of a Kaiser–Bessel kernel, padded to twice its size and transformed; a weighted sum over the 6³ neighbours of
the kernel then gives F. The relative error against the direct sum is below 1e-5 (see
tests/simulation/test_simulate.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier.window import Window

PADDING = 2
_WIDTH = 6
_HALF = _WIDTH // 2
MARGIN = _HALF + 1  # grid points beyond the wanted ones, as far as a window can extend
_WINDOW = Window.for_oversampling(_WIDTH, PADDING)
_STEPS = 4096
_TABLE = _WINDOW.taps(_STEPS)


@dataclass(frozen=True)
class FourierVolume:
    """A volume's transform on the padded grid, ready for interpolation.

    ``grid`` is (2D+8, 2D+8, D+8) complex64 [kz, ky, kx], centred in z and y and from kx = −4 on; frequencies are in
    half steps of 1/D. The volume's origin is voxel D//2.
    """

    grid: NDArray[np.complex64]
    box_size: int


def fourier_volume(volume: NDArray[np.floating], window: Window = _WINDOW) -> FourierVolume:
    """The transform of a (D, D, D) volume. Making it takes about 70 bytes of memory for each voxel.

    Args:
        window: the window with which the grid is to be interpolated, at most as wide as that of `central_slices`.
    """
    box_size = volume.shape[0]
    n, centre, margin = PADDING * box_size, box_size // 2, MARGIN
    padded = np.zeros((n, n, n), dtype=np.float32)
    correction = 1 / window.transform((np.arange(box_size) - centre) / n)
    place = (np.arange(box_size) - centre) % n
    padded[np.ix_(place, place, place)] = volume * (correction[:, None, None] * correction[None, :, None] * correction)
    half = scipy.fft.rfftn(padded, workers=numba.get_num_threads())
    del padded
    wrapped = np.arange(-box_size - margin, box_size + margin) % n
    grid = np.empty((len(wrapped), len(wrapped), box_size + 2 * margin), dtype=np.complex64)
    for column, kx in enumerate(range(-margin, box_size + margin)):
        plane = kx if 0 <= kx <= box_size else -kx % n
        if plane == kx:
            grid[:, :, column] = half[:, :, plane][np.ix_(wrapped, wrapped)]
        else:  # Friedel: F(kx, ky, kz) = conj F(−kx, −ky, −kz), and kx has the period n
            grid[:, :, column] = half[:, :, plane][np.ix_(-wrapped % n, -wrapped % n)].conj()
    return FourierVolume(grid, box_size)


def central_slices(
    volume: FourierVolume, matrices: NDArray[np.float64], origins_in_pixels: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """Half-plane transforms of projections.

    Args:
        matrices: (n, 3, 3) B, such that the slice lies at ``k_volume = Bᵀ (k_x, k_y, 0)``: RELION's A, or
            `slice_matrices`.
        origins_in_pixels: (n, 2) x, y of the shift that centres an image: the particle lies at ``D//2 − origin``.
    Returns:
        (n, D, D//2+1) complex64 for ``irfft2``; zero at and beyond Nyquist's radius, |k| ≥ D/2 in the image or in the
        volume, where the corners of a rotated box hold nothing.
    """
    n, box_size = len(matrices), volume.box_size
    out = np.zeros((n, box_size, box_size // 2 + 1), dtype=np.complex64)
    _slice(volume.grid, _TABLE, np.ascontiguousarray(matrices), np.ascontiguousarray(origins_in_pixels), box_size, out)
    return out


def transform_at(volume: FourierVolume, frequencies: NDArray[np.float64]) -> NDArray[np.complex64]:
    """(n,) complex64 F at any (n, 3) points (kx, ky, kz) in units of 1/D, |k| ≤ D/2 on each axis."""
    return _transform_at(volume.grid, _TABLE, np.ascontiguousarray(frequencies), volume.box_size)


@numba.njit(inline="always")
def _taps(table, x, weights):
    """Fill in the W weights of coordinate x; return the first tap."""
    first = np.ceil(x - _HALF)
    position = (first - x + _HALF) * _STEPS
    row = int(position)
    t = np.float32(position - row)
    for i in range(_WIDTH):
        weights[i] = table[row, i] + t * (table[row + 1, i] - table[row, i])
    return int(first)


@numba.njit(fastmath=True)
def _gather(grid, table, kx, ky, kz, box_size, weights):
    """F at (kx, ky, kz) in units of 1/D; weights: (3, W) float32 scratch memory."""
    flip = kx < 0.0  # only kx ≥ 0 is stored
    sign = -PADDING if flip else PADDING
    margin = MARGIN
    x0 = _taps(table, sign * kx, weights[0]) + margin
    y0 = _taps(table, sign * ky, weights[1]) + margin + box_size
    z0 = _taps(table, sign * kz, weights[2]) + margin + box_size
    real, imaginary = np.float32(0), np.float32(0)
    for iz in range(_WIDTH):
        for iy in range(_WIDTH):
            row = grid[z0 + iz, y0 + iy]
            row_real, row_imaginary = np.float32(0), np.float32(0)
            for ix in range(_WIDTH):
                value = row[x0 + ix]
                row_real += weights[0, ix] * value.real
                row_imaginary += weights[0, ix] * value.imag
            weight = weights[2, iz] * weights[1, iy]
            real += weight * row_real
            imaginary += weight * row_imaginary
    return complex(real, -imaginary if flip else imaginary)


@numba.njit(parallel=True, nogil=True, cache=True)
def _slice(grid, table, matrices, origins, box_size, out):
    centre = box_size // 2
    nyquist_squared = 0.25 * box_size * box_size
    for image in numba.prange(matrices.shape[0]):
        weights = np.empty((3, _WIDTH), dtype=np.float32)
        b = matrices[image]
        shift_x = -2 * np.pi * (centre - origins[image, 0]) / box_size
        shift_y = -2 * np.pi * (centre - origins[image, 1]) / box_size
        for row in range(box_size):
            ky = row if 2 * row < box_size else row - box_size
            for kx in range(box_size // 2 + 1):
                x, y, z = (
                    b[0, 0] * kx + b[1, 0] * ky,
                    b[0, 1] * kx + b[1, 1] * ky,
                    b[0, 2] * kx + b[1, 2] * ky,
                )
                if kx * kx + ky * ky >= nyquist_squared or x * x + y * y + z * z >= nyquist_squared:
                    continue
                value = _gather(grid, table, x, y, z, box_size, weights)
                phase = shift_x * kx + shift_y * ky
                out[image, row, kx] = value * complex(np.cos(phase), np.sin(phase))


@numba.njit(parallel=True, nogil=True, cache=True)
def _transform_at(grid, table, frequencies, box_size):
    n = frequencies.shape[0]
    out = np.empty(n, dtype=np.complex64)
    block = 4096
    for b in numba.prange((n + block - 1) // block):
        weights = np.empty((3, _WIDTH), dtype=np.float32)
        for i in range(b * block, min(n, (b + 1) * block)):
            out[i] = _gather(grid, table, frequencies[i, 0], frequencies[i, 1], frequencies[i, 2], box_size, weights)
    return out
