"""Central slices of several volumes at once: numba kernels.

The transforms of all volumes are interleaved, point by point of the padded grid, so that one set of window taps serves
all of them and the innermost loop runs over neighbouring memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from emsplat.fourier.slices import MARGIN, PADDING, fourier_volume
from emsplat.fourier.window import Window

_WIDTH = 4
_WINDOW = Window.for_oversampling(_WIDTH, PADDING)
_STEPS = 1024
_TABLE = _WINDOW.taps(_STEPS)


@dataclass(frozen=True)
class Volumes:
    """C volumes' transforms on one padded grid: (z, y, x, 2, C) float32, real parts before imaginary ones."""

    grid: NDArray[np.float32]
    box_size: int

    @staticmethod
    def of(volumes: Sequence[NDArray[np.float32]]) -> Volumes:
        """The transforms of volumes with one box size D; each takes about 64 bytes per voxel."""
        box_size = len(volumes[0])
        n = 2 * (box_size + MARGIN)
        grid = np.empty((n, n, box_size + 2 * MARGIN, 2, len(volumes)), dtype=np.float32)
        for i, volume in enumerate(volumes):
            transform = fourier_volume(volume, _WINDOW).grid
            grid[..., 0, i], grid[..., 1, i] = transform.real, transform.imag
        return Volumes(grid, box_size)

    @property
    def count(self) -> int:
        return self.grid.shape[-1]

    def slices(self, matrices: NDArray[np.float64], samples: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, m, 2, C) real and imaginary parts at ``k_volume = Bᵀ (k_x, k_y, 0)``.

        Args:
            matrices: (n, 3, 3) B; samples: (m, 2) kx, ky in units of 1/D, from `half_plane`.
        """
        out = np.empty((len(matrices), len(samples), 2, self.count), dtype=np.float32)
        _gather_all(self.grid, _TABLE, np.ascontiguousarray(matrices), samples, self.box_size, out)
        return out


def half_plane(limit_shell: int) -> NDArray[np.int64]:
    """(m, 2) kx, ky of one sample of each pair ±k within the limit, without the mean."""
    k = np.arange(-limit_shell, limit_shell + 1)
    ky, kx = (a.ravel() for a in np.meshgrid(k, k[limit_shell:], indexing="ij"))
    chosen = (kx**2 + ky**2 <= limit_shell**2) & ((kx > 0) | (ky > 0))
    return np.stack([kx[chosen], ky[chosen]], axis=1)


@numba.njit(inline="always", error_model="numpy")
def _taps(table, x, weights):
    """Fill in the window's weights about x; return the first tap."""
    first = math.ceil(x - _WIDTH / 2)
    position = (first - x + _WIDTH / 2) * _STEPS
    row = int(position)
    t = np.float32(position - row)
    for i in range(_WIDTH):
        weights[i] = table[row, i] + t * (table[row + 1, i] - table[row, i])
    return int(first)


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=True, error_model="numpy")
def _gather_all(grid, table, matrices, samples, box_size, out):
    channels = 2 * grid.shape[4]
    flat = grid.reshape(-1)
    stride_x = channels
    stride_y = stride_x * grid.shape[2]
    stride_z = stride_y * grid.shape[1]
    run = _WIDTH * channels
    for i in numba.prange(matrices.shape[0]):
        b = matrices[i]
        wx, wy, wz = (
            np.empty(_WIDTH, dtype=np.float32),
            np.empty(_WIDTH, dtype=np.float32),
            np.empty(_WIDTH, dtype=np.float32),
        )
        total = np.empty(run, dtype=np.float32)
        for s in range(samples.shape[0]):
            kx, ky = samples[s, 0], samples[s, 1]
            x = b[0, 0] * kx + b[1, 0] * ky
            sign = np.float32(1)
            if x < 0:  # only kx ≥ 0 is stored
                sign = np.float32(-1)
            scale = sign * PADDING
            x0 = _taps(table, scale * x, wx) + MARGIN
            y0 = _taps(table, scale * (b[0, 1] * kx + b[1, 1] * ky), wy) + MARGIN + box_size
            z0 = _taps(table, scale * (b[0, 2] * kx + b[1, 2] * ky), wz) + MARGIN + box_size
            total[:] = 0
            for iz in range(_WIDTH):
                for iy in range(_WIDTH):
                    w = wz[iz] * wy[iy]
                    at = (z0 + iz) * stride_z + (y0 + iy) * stride_y + x0 * stride_x
                    row = flat[at : at + run]
                    for j in range(run):
                        total[j] += w * row[j]
            half = channels // 2
            for c in range(half):
                real, imaginary = np.float32(0), np.float32(0)
                for ix in range(_WIDTH):
                    real += wx[ix] * total[ix * channels + c]
                    imaginary += wx[ix] * total[ix * channels + half + c]
                out[i, s, 0, c] = real
                out[i, s, 1, c] = sign * imaginary


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=True, error_model="numpy")
def add_pose_columns(slices, matrices, samples, box_size, out):
    """Fill in the columns of the linear model: the volumes' slices, and the derivatives of the first one by the pose.

    Args:
        slices: (n, m, 2, C); the last three are those of x·V₀, y·V₀ and z·V₀, with coordinates in voxels.
        out: (n, m, 2, C + 2): the first C − 3 slices unchanged, then turns about the image's x, y, z (radians), then
            shifts in x and y (voxels).
    """
    kept = slices.shape[3] - 3
    step = np.float32(-2 * np.pi / box_size)
    for i in numba.prange(slices.shape[0]):
        a = matrices[i].astype(np.float32)
        for s in range(slices.shape[1]):
            kx, ky = np.float32(samples[s, 0]), np.float32(samples[s, 1])
            for part in range(2):
                for c in range(kept):
                    out[i, s, part, c] = slices[i, s, part, c]
                # dF/dk is −2πi/D times the transform of r·V₀, so real and imaginary parts change places.
                other = 1 - part
                turned = -step if part == 0 else step
                x, y, z = slices[i, s, other, kept], slices[i, s, other, kept + 1], slices[i, s, other, kept + 2]
                along_x = turned * (a[0, 0] * x + a[0, 1] * y + a[0, 2] * z)
                along_y = turned * (a[1, 0] * x + a[1, 1] * y + a[1, 2] * z)
                along_z = turned * (a[2, 0] * x + a[2, 1] * y + a[2, 2] * z)
                out[i, s, part, kept] = -ky * along_z
                out[i, s, part, kept + 1] = kx * along_z
                out[i, s, part, kept + 2] = ky * along_x - kx * along_y
                out[i, s, part, kept + 3] = turned * kx * slices[i, s, other, 0]
                out[i, s, part, kept + 4] = turned * ky * slices[i, s, other, 0]


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=True, error_model="numpy")
def residual_slices(columns, samples, spectra, weights, of_data, of_columns, out):
    """Fill in the residual of each image, times each latent: ``a_k · C W² y − C² W² Σ_l B_kl column_l``.

    Args:
        columns: (n, m, 2, L); spectra: (n, m) C W² y; weights: (n, m) C² W².
        of_data: (n, K) a; of_columns: (n, K, L) B.
        out: (K, n, D, D//2+1) half planes of zeros, ky in fft order.
    """
    box_size = out.shape[2]
    n_columns = columns.shape[3]
    for i in numba.prange(columns.shape[0]):
        for s in range(samples.shape[0]):
            kx, ky = samples[s, 0], samples[s, 1]
            row = ky if ky >= 0 else ky + box_size
            for k in range(of_data.shape[1]):
                real, imaginary = np.float32(0), np.float32(0)
                for c in range(n_columns):
                    real += of_columns[i, k, c] * columns[i, s, 0, c]
                    imaginary += of_columns[i, k, c] * columns[i, s, 1, c]
                value = of_data[i, k] * spectra[i, s] - weights[i, s] * complex(real, imaginary)
                out[k, i, row, kx] = value
                if kx == 0:  # the other sample of the pair
                    out[k, i, box_size - row if row else 0, 0] = value.conjugate()
