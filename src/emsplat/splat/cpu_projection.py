"""The projecting splat on the CPU: numba kernels, forward and backward, with geometry in float64 and pixels in float32.

The shadow of a Gaussian on an image has the 2×2 covariance S. Its Mahalanobis distance is completed to squares,
``m = A t² + B dy²`` with ``t = dx + a dy``, so that no term can cancel the other, however thin the shadow is. A shadow
is processed in columns of eight pixels, each down the rows that the shadow covers within it. Images have `PADDING`
extra columns, so that the last block of a row needs no guard.

Forward: each image has one owner. Backward: each share of the Gaussians has one owner, which goes through all images
and keeps the sums of its share. There are therefore no atomics, nothing grows with images × Gaussians, and the sums are
the same for any number of threads. All gradients follow from six moments of (cotangent × Gaussian).
"""

from __future__ import annotations

import numba
import numpy as np

from emsplat.runtime.simd import LANES, add_gaussian, gaussian_sums
from emsplat.splat.cpu import FAST, PADDING, span

_SHARES = 32


@numba.njit(error_model="numpy", fastmath=FAST)
def _shadow(frame, origin, centre, covariance):
    """Centre x, y in pixels from pixel 0 and S as xx, xy, yy; the covariance is Σ as xx, yy, zz, xy, xz, yz."""
    x = frame[0, 0] * centre[0] + frame[0, 1] * centre[1] + frame[0, 2] * centre[2] + origin[0]
    y = frame[1, 0] * centre[0] + frame[1, 1] * centre[1] + frame[1, 2] * centre[2] + origin[1]
    u, v = _times(covariance, frame[0]), _times(covariance, frame[1])
    return x, y, _dot(u, frame[0]), _dot(u, frame[1]), _dot(v, frame[1])


@numba.njit(error_model="numpy", fastmath=FAST)
def _times(symmetric, vector):
    """Product of a symmetric matrix xx, yy, zz, xy, xz, yz with a vector."""
    m, v = symmetric, vector
    return (
        m[0] * v[0] + m[3] * v[1] + m[4] * v[2],
        m[3] * v[0] + m[1] * v[1] + m[5] * v[2],
        m[4] * v[0] + m[5] * v[1] + m[2] * v[2],
    )


@numba.njit(error_model="numpy", fastmath=FAST)
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@numba.njit(error_model="numpy")
def _squares(shadow):
    """A, a, B and |S|, which is 0 if S is not positive definite, or too small or large for float32."""
    _, _, xx, xy, yy = shadow
    determinant = xx * yy - xy * xy
    if not (0 < yy < 1e30 and yy < 1e30 * determinant and 1e30 * yy > 1):  # NaN fails too
        return 0.0, 0.0, 0.0, 0.0
    return yy / determinant, -xy / yy, 1 / yy, determinant


@numba.njit(error_model="numpy")
def _reach(shadow, squares, peak, cutoff, last):
    """First and last column and row that a shadow covers. A pair is (1, 0) if there are none or S is invalid."""
    x, y, xx, _, yy = shadow
    if not (squares[3] > 0 and abs(np.float32(peak)) < np.inf):
        return 1, 0, 1, 0
    x0, x1 = span(x, cutoff * np.sqrt(xx), last)
    y0, y1 = span(y, cutoff * np.sqrt(yy), last)
    return x0, x1, y0, y1


@numba.njit(error_model="numpy", fastmath=FAST)
def _block(column, shadow, squares, reach, cutoff):
    """First and last row that a shadow covers within eight columns; dx and dy of the first pixel."""
    x, y, xx, xy, yy = shadow
    x0, x1, first, last = reach
    dx = column - x
    if x1 - x0 >= LANES:
        # The uppermost and lowest points of the shadow, or the points where the nearest of the columns cuts it.
        uppermost = cutoff * xy / np.sqrt(yy)
        at_top = min(max(uppermost, dx), dx + (LANES - 1))
        at_bottom = min(max(-uppermost, dx), dx + (LANES - 1))
        slope, across = xy / xx, squares[3] / xx
        top = y + slope * at_top + np.sqrt(max(cutoff * cutoff - at_top * at_top / xx, 0.0) * across)
        bottom = y + slope * at_bottom - np.sqrt(max(cutoff * cutoff - at_bottom * at_bottom / xx, 0.0) * across)
        first, last = int(max(np.ceil(bottom), float(first))), int(min(np.floor(top), float(last)))
    return first, last, np.float32(dx), np.float32(first - y)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def project(centres, covariances, weights, rotations, origins, box_size, cutoff):
    """`reference.project` in float32.

    Args:
        centres: (K, 3) float64; covariances: (K, 6) float64 as xx, yy, zz, xy, xz, yz; weights: (K,) float64.
        rotations: (B, 3, 3) float64; origins: (B, 2) float64.
    Returns:
        (B, D, D + PADDING) float32; the last PADDING columns are scratch.
    """
    images = np.zeros((len(rotations), box_size, box_size + PADDING), dtype=np.float32)
    for i in numba.prange(len(rotations)):
        image, frame, origin = images[i], rotations[i], origins[i]  # outside the inner loop, where they would cost much
        for k in range(len(centres)):
            _add(image, frame, origin, centres[k], covariances[k], weights[k], cutoff)
    return images


@numba.njit(error_model="numpy", fastmath=FAST)
def _add(image, frame, origin, centre, covariance, weight, cutoff):
    shadow = _shadow(frame, origin, centre, covariance)
    squares = _squares(shadow)
    peak = weight / np.sqrt(squares[3])
    reach = _reach(shadow, squares, peak, cutoff, len(image) - 1)
    a, slope, b = np.float32(squares[0]), np.float32(squares[1]), np.float32(squares[2])
    cutoff2, stride = np.float32(cutoff * cutoff), image.shape[1]
    for column in range(reach[0], reach[1] + 1, LANES):
        first, last, dx, dy = _block(column, shadow, squares, reach, cutoff)
        for row in range(first, last + 1):
            t = dx + slope * dy
            add_gaussian(image, row * stride + column, t, b * dy * dy, a, np.float32(peak), cutoff2)
            dy += np.float32(1)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def gradients(centres, covariances, weights, rotations, origins, cotangent, cutoff):
    """The gradients of `project` for a cotangent (B, D, D + PADDING) that is zero in the last PADDING columns.

    Returns, all float64:
        (K, 10) d centre x y z, d Σ as xx, yy, zz, xy, xz, yz (one of the two equal entries), d weight;
        (B, 8) d A, its first two rows, then d origin.
    """
    n, n_images = len(centres), len(rotations)
    of_gaussians = np.zeros((n, 10))
    of_images = np.zeros((_SHARES, n_images, 8))
    for share in numba.prange(_SHARES):
        for i in range(n_images):
            of_image, image, frame, origin = of_images[share, i], cotangent[i], rotations[i], origins[i]
            for k in range(share * n // _SHARES, (share + 1) * n // _SHARES):
                _add_gradients(
                    of_gaussians[k], of_image, image, frame, origin, centres[k], covariances[k], weights[k], cutoff
                )
    return of_gaussians, of_images.sum(axis=0)


@numba.njit(error_model="numpy", fastmath=FAST)
def _add_gradients(of_gaussian, of_image, cotangent, frame, origin, centre, covariance, weight, cutoff):
    shadow = _shadow(frame, origin, centre, covariance)
    squares = _squares(shadow)
    a, slope, b, determinant = squares
    height = 1 / np.sqrt(determinant)
    peak = weight * height
    reach = _reach(shadow, squares, peak, cutoff, len(cotangent) - 1)
    if reach[0] > reach[1] or reach[2] > reach[3]:
        return
    m, mt, my, mtt, mty, myy = _moments(cotangent, shadow, squares, reach, cutoff)
    # The derivative by the shadow's centre is S⁻¹ d, and by S it is ½ S⁻¹ (d dᵀ − S) S⁻¹; S⁻¹ d = (A t, a A t + B dy).
    fx = peak * a * mt
    fy = slope * fx + peak * b * my
    tt, ty, yy = 0.5 * peak * (a * a * mtt - a * m), 0.5 * peak * a * b * mty, 0.5 * peak * (b * b * myy - b * m)
    gxx, gxy, gyy = tt, slope * tt + ty, slope * (slope * tt + 2 * ty) + yy
    p, q = frame[0], frame[1]
    for j in range(3):
        of_gaussian[j] += fx * p[j] + fy * q[j]
    up = gxx * p[0] + gxy * q[0], gxx * p[1] + gxy * q[1], gxx * p[2] + gxy * q[2]
    uq = gxy * p[0] + gyy * q[0], gxy * p[1] + gyy * q[1], gxy * p[2] + gyy * q[2]
    for j in range(3):
        of_gaussian[3 + j] += p[j] * up[j] + q[j] * uq[j]
    of_gaussian[6] += p[0] * up[1] + q[0] * uq[1]
    of_gaussian[7] += p[0] * up[2] + q[0] * uq[2]
    of_gaussian[8] += p[1] * up[2] + q[1] * uq[2]
    of_gaussian[9] += height * m
    vp, vq = _times(covariance, up), _times(covariance, uq)
    for j in range(3):
        of_image[j] += fx * centre[j] + 2 * vp[j]
        of_image[3 + j] += fy * centre[j] + 2 * vq[j]
    of_image[6] += fx
    of_image[7] += fy


@numba.njit(error_model="numpy", fastmath=FAST)
def _moments(cotangent, shadow, squares, reach, cutoff):
    """Σ g, Σ g·(t, dy), Σ g·(t², t dy, dy²) with g = cotangent × exp(−m/2)."""
    a, slope, b = np.float32(squares[0]), np.float32(squares[1]), np.float32(squares[2])
    cutoff2, stride = np.float32(cutoff * cutoff), cotangent.shape[1]
    zero = np.float32(0)
    m, mt, my, mtt, mty, myy = zero, zero, zero, zero, zero, zero
    for column in range(reach[0], reach[1] + 1, LANES):
        first, last, dx, dy = _block(column, shadow, squares, reach, cutoff)
        for row in range(first, last + 1):
            t = dx + slope * dy
            s, st, stt = gaussian_sums(cotangent, row * stride + column, t, b * dy * dy, a, cutoff2)
            m += s
            mt += st
            my += s * dy
            mtt += stt
            mty += st * dy
            myy += s * dy * dy
            dy += np.float32(1)
    return m, mt, my, mtt, mty, myy
