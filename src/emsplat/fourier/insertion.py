"""Insertion of Fourier slices into a 3D grid, which is their back-projection, by numba kernels.

Every sample of a slice is spread over 4³ grid points by a compact Kaiser–Bessel kernel on an oversampled grid. After
the inverse transform, the transform of the kernel is divided out (a type-1 non-uniform FFT).

The grid is cut into tiles of whole x rows that fit in the cache of a core. A sample belongs to the tile in which its
kernel begins, and a tile belongs to one thread, which goes through the part of each slice that lies in it. Kernels
extend into the next tiles. Tiles are therefore given four colours, such that no two neighbours have the same colour,
and one colour is worked on at a time. There are no atomics and no copies per thread, no sample is spread twice, and the
sum does not depend on the number of threads.

Only the half z ≥ 0 is wanted. Samples with z < 0 whose kernel extends into it are inserted as they come, since a slice
contains both k and −k.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier.window import Window
from emsplat.runtime.simd import WIDTH, spread_sample

OVERSAMPLING = 1.5  # grid points per voxel of the cube that is wanted, along an axis
HALO = 3  # grid points kept beyond ±n/2, as far as a kernel can extend
STEPS = 512  # number of steps in the table of the kernel
_TILE = 12
_FAST = {"nnan", "ninf", "nsz"}  # none of these flags changes the rounding; see `simd.spread_sample`


@dataclass
class SliceGrid:
    """The half z ≥ 0 of an oversampled Fourier grid, with a halo around it, to which slices are added.

    Its values are complex for a back-projection, and real (and even) for a convolution kernel.
    """

    extent: int  # voxels of the real-space cube that is wanted, per axis
    box_size: int  # D of the slices: their samples lie at integer multiples of 1/D
    period: int  # n: grid points per axis
    values: NDArray  # (n/2+1+2 halo, n+2 halo, n+2 halo) complex64 or float32

    @staticmethod
    def empty(extent: int, box_size: int, dtype: type[np.generic], oversampling: float = OVERSAMPLING) -> SliceGrid:
        """A grid of zeros, complex64 or float32, for slices of that type."""
        period = grid_period(extent, box_size, oversampling)
        return SliceGrid(extent, box_size, period, np.zeros(grid_shape(period), dtype=dtype))

    @property
    def _window(self) -> Window:
        return Window.for_oversampling(WIDTH, self.period / self.extent)

    def insert(self, slices: NDArray, matrices: NDArray[np.float64]) -> None:
        """Add slices at ``k_volume = Bᵀ (k_x, k_y, 0)``.

        Args:
            slices: (n, D, D//2+1) half planes of the grid's type, ky in fft order.
            matrices: (n, 3, 3) B: rotations, or rotations of a plane that is stretched and sheared.

        Samples at or beyond Nyquist's radius, |k| ≥ D/2 in the slice or in the volume, are left out.
        """
        scale = self.period / self.box_size
        frames = frames_of(matrices)
        ends = row_ends(frames.astype(np.float64), self.box_size)
        slices = np.ascontiguousarray(slices, dtype=self.values.dtype)
        planes, rows = self.values.shape[:2]
        tiles, colours = _tiles(planes, rows, numba.get_num_threads())
        _insert(self.values, slices, frames * np.float32(scale), ends, taps_and_slopes(self._window), tiles, colours)

    def backprojection(self) -> NDArray[np.float32]:
        """(extent,)*3 real-space sum ``Σ value · exp(+2πi k·r / D)`` over all samples, r from −(extent//2).

        Planes are transformed one by one and cropped immediately, so that the whole complex grid never exists.
        """
        n = self.period
        r = np.arange(self.extent) - self.extent // 2
        half = np.empty((n // 2 + 1, self.extent, self.extent), dtype=np.complex64)
        volume = np.empty((self.extent,) * 3, dtype=np.float32)

        def across(z: int) -> None:
            half[z] = scipy.fft.ifft2(self._plane(z), overwrite_x=True)[np.ix_(r, r)]

        def along(y: int) -> None:
            volume[:, y] = scipy.fft.irfft(half[:, y], n=n, axis=0)[r]

        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            for task, planes in ((across, n // 2 + 1), (along, self.extent)):
                for _ in pool.map(task, range(planes)):
                    pass
        window = self._window.transform(r / n).astype(np.float32) / np.float32(n)
        volume /= window[:, None, None]
        volume /= window[:, None]
        volume /= window
        return volume

    def _plane(self, z: int) -> NDArray[np.complex64]:
        """(n, n) plane z of the periodic grid in fft order. Samples spread beyond the borders are folded back."""
        n = self.period
        plane = self._wrapped(z)
        if z >= n // 2 - HALO:
            # Plane n − z is the conjugate mirror image of plane z; as far as it is stored, it holds spread samples.
            plane += np.roll(self._wrapped(n - z)[::-1, ::-1], 1, axis=(0, 1)).conj()
        return plane

    def _wrapped(self, z: int) -> NDArray[np.complex64]:
        """(n, n) stored plane z with its halo wrapped around, rolled to fft order."""
        n, h = self.period, HALO
        plane = self.values[z + HALO].astype(np.complex64, copy=False)
        rows = plane[h : h + n].copy()
        rows[:h] += plane[h + n :]
        rows[n - h :] += plane[:h]
        wrapped = rows[:, h : h + n].copy()
        wrapped[:, :h] += rows[:, h + n :]
        wrapped[:, n - h :] += rows[:, :h]
        return np.roll(wrapped, -(n // 2), axis=(0, 1))


def grid_period(extent: int, box_size: int, oversampling: float = OVERSAMPLING) -> int:
    """n for a cube of this edge: even, fast to transform, and at least as fine as the sampling of the slices."""
    period = max(scipy.fft.next_fast_len(int(np.ceil(oversampling * extent)), real=True), box_size)
    while period % 2 or scipy.fft.next_fast_len(period, real=True) != period:
        period += 1
    return period


def grid_shape(period: int) -> tuple[int, int, int]:
    """Numbers of planes, rows and columns that are stored for a grid of this period."""
    across = period + 2 * HALO
    return period // 2 + 1 + 2 * HALO, across, across


def frames_of(matrices: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n, 3, 2) x, y, z of the slices' axes: rows 0 and 1 of (n, 3, 3) B, since ``k_volume = Bᵀ (kx, ky, 0)``."""
    return np.ascontiguousarray(matrices[:, :2, :].transpose(0, 2, 1), dtype=np.float32)


def taps_and_slopes(window: Window) -> NDArray[np.float32]:
    """(STEPS + 1, 8) four taps of the window, and the increase of each up to the next row of the table."""
    taps = window.taps(STEPS)
    return np.concatenate([taps[:-1], np.diff(taps, axis=0)], axis=1)


def _tiles(planes: int, rows: int, threads: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(tiles, 2) first plane and row of every tile, colour by colour; (5,) the start of each colour and the end.

    The tiles of a colour are dealt out so that every thread gets some with many samples and some with few.
    """
    z, y = np.meshgrid(np.arange(0, planes - WIDTH + 1, _TILE), np.arange(0, rows - WIDTH + 1, _TILE), indexing="ij")
    tiles = np.stack([z.ravel(), y.ravel()], axis=1)
    # The sample density falls as 1/k from the x axis, so tiles are sorted by their distance from it and then dealt out.
    distance = np.hypot(tiles[:, 0] + _TILE / 2 - HALO, tiles[:, 1] + _TILE / 2 - rows / 2)
    tiles = tiles[np.argsort(distance, kind="stable")]
    colour = tiles // _TILE % 2 @ [2, 1]
    dealt = [tiles[colour == c][thread::threads] for c in range(4) for thread in range(threads)]
    return np.concatenate(dealt), np.cumsum([0, *np.bincount(colour, minlength=4)])


def row_ends(frames: NDArray[np.float64], box_size: int) -> NDArray[np.float32]:
    """(n, 2r+1, 2) first and last kx of the rows ky = −r … r whose samples lie below Nyquist's radius, r = (D−1)//2.

    They lie below it in the slice (a disc) and in the volume (an ellipse in the slice), so that no kernel leaves the
    grid.
    """
    if not np.isfinite(frames).all():
        raise ValueError("matrices hold a value that is not finite")
    xx, xy, yy = (np.sum(frames[:, :, i] * frames[:, :, j], axis=1)[:, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    if not np.all(xx * yy - xy**2 > 0):
        raise ValueError("matrices hold one of which the first two rows span no plane")
    ky = np.arange(-((box_size - 1) // 2), (box_size - 1) // 2 + 1)
    disc = np.floor(np.sqrt((box_size**2 - 1) // 4 - ky**2))
    # xx kx² + 2 xy kx ky + yy ky² < D²/4
    discriminant = xx * box_size**2 / 4 - (xx * yy - xy**2) * ky**2
    half = np.sqrt(np.maximum(discriminant, 0)) / xx
    first, last = np.maximum(-disc, -xy * ky / xx - half), np.minimum(disc, -xy * ky / xx + half)
    last = np.where(discriminant < 0, -box_size, last)  # for a row that misses the ellipse
    return np.stack([np.ceil(first), np.floor(last)], axis=2).astype(np.float32)


@numba.njit(error_model="numpy")
def _clip(first, last, slope, constant, low, high):
    """Narrow [first, last] to the integers x with low ≤ slope·x + constant ≤ high (floats; empty if first > last)."""
    if abs(slope) < np.float32(1e-6):
        return (first, last) if low <= constant <= high else (np.float32(1), np.float32(0))
    a, b = (low - constant) / slope, (high - constant) / slope
    if a > b:
        a, b = b, a
    return max(first, a), min(last, b)


@numba.njit(error_model="numpy")
def _rows_of(az, bz, ay, by, z_low, z_high, y_low, y_high, radius):
    """Range of ky within which a slice can touch the rectangle z_low..z_high, y_low..y_high."""
    det = az * by - bz * ay
    if abs(det) < np.float32(1e-3):
        return -radius, radius
    a, b = az * y_low / det, az * y_high / det
    c, d = -ay * z_low / det, -ay * z_high / det
    low = np.floor(min(a, b) + min(c, d))
    high = np.ceil(max(a, b) + max(c, d))
    return max(-radius, int(max(low, np.float32(-radius)))), min(radius, int(min(high, np.float32(radius))))


@numba.njit(error_model="numpy")
def _first_tap(x):
    """First grid point of the kernel about x."""
    return np.ceil(x - np.float32(WIDTH / 2))


@numba.njit(error_model="numpy")
def _place(first, x):
    """Row of the table for a kernel about x that begins at a grid point, and the fraction of the way to the next."""
    p = (first - x + np.float32(WIDTH / 2)) * np.float32(STEPS)
    row = np.int32(p)
    return row, p - np.float32(row)


@numba.njit(error_model="numpy")
def _rows_in_stack(i, ky, box_size, columns):
    """Flat indices of (kx = 0, ky) and (0, −ky) of slice i, in fft order."""
    up = ky if ky >= 0 else ky + box_size
    down = box_size - up if up > 0 else 0
    return (i * box_size + up) * columns, (i * box_size + down) * columns


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy", fastmath=_FAST)
def _insert(grid, slices, frames, ends, taps, tiles, colours):
    """Spread all samples of all slices, tile by tile.

    frames: (n, 3, 2), the in-plane axes in grid points; ends: from `row_ends`; tiles, colours: from `_tiles`.

    No function that is called for each sample takes an array. If it branched, it would count references to the array
    with atomic increments, for which all threads would wait.
    """
    n, box_size, columns = slices.shape
    values = slices.reshape(-1)
    stride, plane_stride = grid.shape[2], grid.shape[1] * grid.shape[2]
    radius = (box_size - 1) // 2
    centre = np.float32(grid.shape[1] // 2)
    tile, halo = np.float32(_TILE), np.float32(HALO)
    # A kernel begins at the first grid point less than half a width before its sample. The stretch is slightly longer
    # on both sides, because rounding affects its ends; each sample is then tested by itself.
    before, after = np.float32(WIDTH / 2 - 1.01), np.float32(WIDTH / 2 - 0.99)
    for colour in range(len(colours) - 1):
        for t in numba.prange(colours[colour], colours[colour + 1]):
            z0, y0 = np.float32(tiles[t, 0]), np.float32(tiles[t, 1])
            z_low, z_high = z0 - halo + before, z0 - halo + tile + after
            y_low, y_high = y0 - centre + before, y0 - centre + tile + after
            for i in range(n):
                ax, bx = frames[i, 0, 0], frames[i, 0, 1]
                ay, by = frames[i, 1, 0], frames[i, 1, 1]
                az, bz = frames[i, 2, 0], frames[i, 2, 1]
                first_ky, last_ky = _rows_of(az, bz, ay, by, z_low, z_high, y_low, y_high, radius)
                for ky in range(first_ky, last_ky + 1):
                    fy = np.float32(ky)
                    low, high = ends[i, ky + radius, 0], ends[i, ky + radius, 1]
                    low, high = _clip(low, high, az, bz * fy, z_low, z_high)
                    low, high = _clip(low, high, ay, by * fy, y_low, y_high)
                    at_right, at_left = _rows_in_stack(i, ky, box_size, columns)
                    for kx in range(int(np.ceil(low)), int(np.floor(high)) + 1):
                        fx = np.float32(kx)
                        x, y, z = ax * fx + bx * fy + centre, ay * fx + by * fy + centre, az * fx + bz * fy + halo
                        column, row, plane = _first_tap(x), _first_tap(y), _first_tap(z)
                        if plane < z0 or plane >= z0 + tile or row < y0 or row >= y0 + tile:
                            continue
                        # A real image's transform at −k is the conjugate of that at k.
                        value = values[np.uint64(at_right + kx if kx >= 0 else at_left - kx)]
                        value = value if kx >= 0 else np.conj(value)
                        (jx, gx), (jy, gy), (jz, gz) = _place(column, x), _place(row, y), _place(plane, z)
                        at = np.int64(plane) * plane_stride + np.int64(row) * stride + np.int64(column)
                        spread_sample(grid, at, stride, plane_stride, value, taps, jx, gx, jy, gy, jz, gz)
