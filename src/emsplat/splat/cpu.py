"""The 3D splat on the CPU: numba kernels, forward and backward, with geometry in float64 and voxels in float32.

The Mahalanobis distance is completed to squares, ``m = A (dx + a dy + b dz)² + B (dy + c dz)² + C dz²``. No term can
then cancel another, however thin the Gaussian is, and the planes, rows and voxels within the cut-off follow in turn.
A row of voxels is processed in blocks of eight. The grid has `PADDING` extra columns, so that the last block of a row
needs no guard. A Gaussian that is not finite, or whose matrix is not positive definite, adds nothing.

Forward: each slab of z planes has one owner, so that there are no atomics and the sum is the same for any number of
threads. Backward: each Gaussian has one owner, which needs only the ten moments of (cotangent × Gaussian).
"""

from __future__ import annotations

import numba
import numpy as np

from emsplat.runtime.simd import LANES, add_gaussian, gaussian_sums

PADDING = LANES
# The compiler may do anything except assume that NaN and infinity never occur, because the guards below rely on them.
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}
_SLABS = 32


@numba.njit(error_model="numpy")
def _squares(precision):
    """A, B, C, a, b, c of a precision matrix xx, yy, zz, xy, xz, yz; C is −1 if it is not positive definite."""
    xx, yy, zz, xy, xz, yz = precision
    a, b = xy / xx, xz / xx
    second = yy - a * xy
    c = (yz - a * xz) / second
    third = zz - b * xz - c * c * second
    if not (0 < xx < 1e30 and 0 < second < 1e30 and 0 < third < 1e30):  # NaN fails too
        third = -1.0
    return np.float32(xx), np.float32(second), np.float32(third), np.float32(a), np.float32(b), np.float32(c)


@numba.njit(error_model="numpy")
def span(middle, half_width, last):
    """First and last integer within half_width of the middle and within 0..last; (1, 0) for none and for NaN.

    They are compared as floats, because a float beyond the integers' range has no defined integer.
    """
    low, high = np.ceil(middle - half_width), np.floor(middle + half_width)
    if not (low <= high and low <= last and high >= 0):
        return 1, 0
    return int(max(low, 0.0)), int(min(high, float(last)))


@numba.njit(error_model="numpy")
def _planes(squares, z, last, cutoff2):
    return span(z, np.sqrt(cutoff2 / squares[2]), last) if squares[2] > 0 else (1, 0)


@numba.njit(error_model="numpy", fastmath=FAST)
def _rows(squares, y, dz, last, cutoff2):
    """First and last row of a plane that the Gaussian covers."""
    left = max(cutoff2 - squares[2] * dz * dz, np.float32(0))
    return span(y - squares[5] * dz, np.sqrt(left / squares[1]), last)


@numba.njit(error_model="numpy", fastmath=FAST)
def _columns(squares, x, dy, dz, last, cutoff2):
    """First and last column of a row; the shift for which dx + shift is counted from the row's maximum; m there."""
    along_y = dy + squares[5] * dz
    constant = squares[1] * along_y * along_y + squares[2] * dz * dz
    shift = squares[3] * dy + squares[4] * dz
    first, last = span(x - shift, np.sqrt(max(cutoff2 - constant, np.float32(0)) / squares[0]), last)
    return first, last, shift, constant


@numba.njit(error_model="numpy", fastmath=FAST)
def _half_width(squares, cutoff2):
    """The most columns that any row covers on either side of its maximum, if one block holds them all; else −1."""
    half_width = np.sqrt(cutoff2 / squares[0])
    return half_width if 2 * half_width < LANES else np.float32(-1)


@numba.njit(error_model="numpy", fastmath=FAST)
def _block(half_width, squares, x, dy, dz, last):
    """First column of a row that one block holds, −1 for none; there, dx counted from the maximum, and m."""
    along_y = dy + squares[5] * dz
    shift = squares[3] * dy + squares[4] * dz
    middle = x - shift
    first = np.ceil(middle - half_width)
    if not (first <= last and first > -LANES):  # NaN too
        return -1, np.float32(0), np.float32(0)
    first = max(first, 0.0)
    return int(first), np.float32(first - middle), squares[1] * along_y * along_y + squares[2] * dz * dz


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def splat(centres, precisions, weights, box_size, cutoff):
    """Sum of truncated Gaussians on a grid.

    Args:
        centres: (K, 3) float64 x, y, z in voxels from voxel 0.
        precisions: (K, 6) float64, Σ⁻¹ as xx, yy, zz, xy, xz, yz in 1/px².
        weights: (K,) float32 peak values.
        cutoff: Mahalanobis radius c.
    Returns:
        (D, D, D + PADDING) float32; the last PADDING columns are scratch.
    """
    n = centres.shape[0]
    volume = np.zeros((box_size, box_size, box_size + PADDING), dtype=np.float32)
    cutoff2 = np.float32(cutoff * cutoff)
    squares = np.empty((n, 6), dtype=np.float32)
    planes = np.empty((n, 2), dtype=np.int32)
    for k in numba.prange(n):
        of_one = _squares(precisions[k])
        for i in range(6):
            squares[k, i] = of_one[i]
        planes[k, 0], planes[k, 1] = _planes(of_one, centres[k, 2], box_size - 1, cutoff2)
    for s in numba.prange(_SLABS):
        # Neighbouring slabs go to different threads, because the middle of the particle has the most work.
        slab = (s % 4) * (_SLABS // 4) + s // 4
        first, last = slab * box_size // _SLABS, (slab + 1) * box_size // _SLABS
        for k in range(n):
            z0, z1 = max(first, planes[k, 0]), min(last - 1, planes[k, 1])
            if z0 <= z1:
                _splat_one(volume, centres[k], squares[k], weights[k], z0, z1, cutoff2)
    return volume


@numba.njit(error_model="numpy", fastmath=FAST)
def _splat_one(volume, centre, squares, weight, z0, z1, cutoff2):
    box_size, stride = volume.shape[0], volume.shape[2]
    half_width = _half_width(squares, cutoff2)
    for z in range(z0, z1 + 1):
        dz = np.float32(z - centre[2])
        y0, y1 = _rows(squares, centre[1], dz, box_size - 1, cutoff2)
        if half_width > 0:
            for y in range(y0, y1 + 1):
                dy = np.float32(y - centre[1])
                x, dx, constant = _block(half_width, squares, centre[0], dy, dz, box_size - 1)
                if x >= 0:
                    add_gaussian(volume, (z * box_size + y) * stride + x, dx, constant, squares[0], weight, cutoff2)
            continue
        for y in range(y0, y1 + 1):
            dy = np.float32(y - centre[1])
            x0, x1, shift, constant = _columns(squares, centre[0], dy, dz, box_size - 1, cutoff2)
            start = (z * box_size + y) * stride
            dx = np.float32(x0 - centre[0]) + shift
            for x in range(x0, x1 + 1, LANES):
                add_gaussian(volume, start + x, dx, constant, squares[0], weight, cutoff2)
                dx += np.float32(LANES)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def moments(centres, precisions, cotangent, cutoff):
    """The ten moments of (cotangent × unit-peak Gaussian) about each centre.

    Args:
        cotangent: (D, D, D + PADDING) float32, zero in the last PADDING columns.
    Returns:
        (K, 10) float32: Σ g, then Σ g·(dx, dy, dz), then Σ g·(dx², dy², dz², dx dy, dx dz, dy dz),
        g = cotangent × exp(−m/2).
    """
    n = centres.shape[0]
    out = np.zeros((n, 10), dtype=np.float32)
    cutoff2 = np.float32(cutoff * cutoff)
    for k in numba.prange(n):
        _moments_one(out[k], centres[k], _squares(precisions[k]), cotangent, cutoff2)
    return out


@numba.njit(error_model="numpy", fastmath=FAST)
def _moments_one(out, centre, squares, cotangent, cutoff2):
    box_size, stride = cotangent.shape[0], cotangent.shape[2]
    zero = np.float32(0)
    m0, mx, my, mz, mxx, myy, mzz, mxy, mxz, myz = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    z0, z1 = _planes(squares, centre[2], box_size - 1, cutoff2)
    half_width = _half_width(squares, cutoff2)
    for z in range(z0, z1 + 1):
        dz = np.float32(z - centre[2])
        y0, y1 = _rows(squares, centre[1], dz, box_size - 1, cutoff2)
        for y in range(y0, y1 + 1):
            dy = np.float32(y - centre[1])
            start = (z * box_size + y) * stride
            shift = squares[3] * dy + squares[4] * dz
            s0, s1, s2 = zero, zero, zero
            if half_width > 0:
                x, dx, constant = _block(half_width, squares, centre[0], dy, dz, box_size - 1)
                if x < 0:
                    continue
                s0, s1, s2 = gaussian_sums(cotangent, start + x, dx, constant, squares[0], cutoff2)
            else:
                x0, x1, shift, constant = _columns(squares, centre[0], dy, dz, box_size - 1, cutoff2)
                dx = np.float32(x0 - centre[0]) + shift
                for x in range(x0, x1 + 1, LANES):
                    t0, t1, t2 = gaussian_sums(cotangent, start + x, dx, constant, squares[0], cutoff2)
                    s0 += t0
                    s1 += t1
                    s2 += t2
                    dx += np.float32(LANES)
            # Convert moments about the row's maximum to moments about the centre.
            s2 += shift * (shift * s0 - np.float32(2) * s1)
            s1 -= shift * s0
            m0 += s0
            mx += s1
            my += s0 * dy
            mz += s0 * dz
            mxx += s2
            myy += s0 * dy * dy
            mzz += s0 * dz * dz
            mxy += s1 * dy
            mxz += s1 * dz
            myz += s0 * dy * dz
    out[0], out[1], out[2], out[3], out[4] = m0, mx, my, mz, mxx
    out[5], out[6], out[7], out[8], out[9] = myy, mzz, mxy, mxz, myz
