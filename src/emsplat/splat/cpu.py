"""The 3D splat on the CPU: numba kernels, float32, forward and backward.

A row of voxels is walked in blocks of eight; the truncation is decided per voxel from the Mahalanobis distance itself,
which no shape of covariance can overflow. The grid carries `PADDING` extra columns, so that the last block of a row needs no guard.
Forward: one owner per slab of z planes, so no atomics and the same sum for any number of threads.
Backward: one owner per Gaussian; it needs only the ten moments of (cotangent × Gaussian).
"""

from __future__ import annotations

import numba
import numpy as np

from emsplat.simd import LANES, add_gaussian, gaussian_sums

PADDING = LANES
_SLABS = 32


@numba.njit(error_model="numpy", fastmath=True)
def _reach(q, cutoff2):
    """Half widths of the truncated ellipsoid's bounding box along y and z: c sqrt(Σ_yy), c sqrt(Σ_zz)."""
    det = (
        q[0] * (q[1] * q[2] - q[5] * q[5]) - q[3] * (q[3] * q[2] - q[5] * q[4]) + q[4] * (q[3] * q[5] - q[1] * q[4])
    )
    yy = (q[0] * q[2] - q[4] * q[4]) / det
    zz = (q[0] * q[1] - q[3] * q[3]) / det
    return np.sqrt(cutoff2 * yy), np.sqrt(cutoff2 * zz)


@numba.njit(error_model="numpy", fastmath=True)
def _row(q, inverse, dy, dz, cutoff2):
    """Linear and constant terms of the quadratic along a row, and the half width of the part within the cut-off."""
    linear = q[3] * dy + q[4] * dz
    constant = q[1] * dy * dy + np.float32(2) * q[5] * dy * dz + q[2] * dz * dz
    discriminant = linear * linear - q[0] * (constant - cutoff2)
    half_width = np.sqrt(discriminant) * inverse if discriminant > 0 else np.float32(-1)
    return linear, constant, half_width


@numba.njit(parallel=True, cache=True, error_model="numpy", fastmath=True)
def splat(centres, precisions, weights, box_size, cutoff):
    """Sum of truncated Gaussians on a grid.

    Args:
        centres: (K, 3) float32 x, y, z in voxels from voxel 0.
        precisions: (K, 6) float32, Σ⁻¹ as xx, yy, zz, xy, xz, yz in 1/px².
        weights: (K,) float32 peak values.
        cutoff: Mahalanobis radius c.
    Returns:
        (D, D, D + PADDING) float32; the last PADDING columns hold nothing.
    """
    n = centres.shape[0]
    volume = np.zeros((box_size, box_size, box_size + PADDING), dtype=np.float32)
    cutoff2 = np.float32(cutoff * cutoff)
    extent = np.empty((n, 2), dtype=np.float32)
    for k in numba.prange(n):
        extent[k, 0], extent[k, 1] = _reach(precisions[k], cutoff2)
    for s in numba.prange(_SLABS):
        # Neighbouring slabs go to different threads: the particle's middle is the busiest.
        slab = (s % 4) * (_SLABS // 4) + s // 4
        first, last = slab * box_size // _SLABS, (slab + 1) * box_size // _SLABS
        for k in range(n):
            cz = centres[k, 2]
            z0 = max(first, int(np.ceil(cz - extent[k, 1])))
            z1 = min(last - 1, int(np.floor(cz + extent[k, 1])))
            if z0 <= z1:
                _splat_one(volume, centres[k], precisions[k], weights[k], extent[k, 0], z0, z1, cutoff2)
    return volume


@numba.njit(error_model="numpy", fastmath=True)
def _splat_one(volume, centre, q, weight, reach_y, z0, z1, cutoff2):
    box_size, stride = volume.shape[0], volume.shape[2]
    cx, cy, cz = centre[0], centre[1], centre[2]
    qxx, inverse = q[0], np.float32(1) / q[0]
    y0 = max(0, int(np.ceil(cy - reach_y)))
    y1 = min(box_size - 1, int(np.floor(cy + reach_y)))
    for z in range(z0, z1 + 1):
        dz = np.float32(z) - cz
        for y in range(y0, y1 + 1):
            linear, constant, half_width = _row(q, inverse, np.float32(y) - cy, dz, cutoff2)
            if half_width < 0:
                continue
            middle = cx - linear * inverse
            x0 = max(0, int(np.ceil(middle - half_width)))
            x1 = min(box_size - 1, int(np.floor(middle + half_width)))
            start = (z * box_size + y) * stride
            for x in range(x0, x1 + 1, LANES):
                dx = np.float32(x) - cx
                add_gaussian(volume, start + x, dx, constant, np.float32(2) * linear, qxx, weight, cutoff2)


@numba.njit(parallel=True, cache=True, error_model="numpy", fastmath=True)
def moments(centres, precisions, cotangent, cutoff):
    """The ten moments of (cotangent × unit-peak Gaussian) about each centre.

    Args:
        cotangent: (D, D, D + PADDING) float32, zero in the last PADDING columns.
    Returns:
        (K, 10) float32: Σ g, then Σ g·(dx, dy, dz), then Σ g·(dx², dy², dz², dx dy, dx dz, dy dz), g = cotangent × exp(−m/2).
    """
    n = centres.shape[0]
    out = np.zeros((n, 10), dtype=np.float32)
    cutoff2 = np.float32(cutoff * cutoff)
    for k in numba.prange(n):
        _moments_one(out[k], centres[k], precisions[k], cotangent, cutoff2)
    return out


@numba.njit(error_model="numpy", fastmath=True)
def _moments_one(out, centre, q, cotangent, cutoff2):
    box_size, stride = cotangent.shape[0], cotangent.shape[2]
    cx, cy, cz = centre[0], centre[1], centre[2]
    zero = np.float32(0)
    m0, mx, my, mz, mxx, myy, mzz, mxy, mxz, myz = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    qxx, inverse = q[0], np.float32(1) / q[0]
    reach_y, reach_z = _reach(q, cutoff2)
    z0 = max(0, int(np.ceil(cz - reach_z)))
    z1 = min(box_size - 1, int(np.floor(cz + reach_z)))
    y0 = max(0, int(np.ceil(cy - reach_y)))
    y1 = min(box_size - 1, int(np.floor(cy + reach_y)))
    for z in range(z0, z1 + 1):
        dz = np.float32(z) - cz
        for y in range(y0, y1 + 1):
            dy = np.float32(y) - cy
            linear, constant, half_width = _row(q, inverse, dy, dz, cutoff2)
            if half_width < 0:
                continue
            middle = cx - linear * inverse
            x0 = max(0, int(np.ceil(middle - half_width)))
            x1 = min(box_size - 1, int(np.floor(middle + half_width)))
            start = (z * box_size + y) * stride
            s0, s1, s2 = zero, zero, zero
            for x in range(x0, x1 + 1, LANES):
                dx = np.float32(x) - cx
                t0, t1, t2 = gaussian_sums(cotangent, start + x, dx, constant, np.float32(2) * linear, qxx, cutoff2)
                s0 += t0
                s1 += t1
                s2 += t2
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
