"""The shapes of Gaussians on the CPU, by numba kernels in float64: precisions, and the gradients of the 3D splat.

``Σ⁻¹ = R(q) diag(w) R(q)ᵀ`` with w = exp(−2 log σ). A few thousand Gaussians are too few for the overhead of a tensor
library, whose thirty calls for each step of a fit took a fifth of its time, on a single thread.
"""

from __future__ import annotations

import numba
import numpy as np

_LEAST_NORM = 1e-12  # of a quaternion, as in `torch.nn.functional.normalize`


@numba.njit(error_model="numpy")
def _unit(q):
    norm = max(np.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]), _LEAST_NORM)
    return q[0] / norm, q[1] / norm, q[2] / norm, q[3] / norm, norm


@numba.njit(error_model="numpy")
def _rotation(w, x, y, z):
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def precisions(log_scales, quaternions):
    """(K, 6) xx, yy, zz, xy, xz, yz of Σ⁻¹, from (K, 3) log σ and (K, 4) quaternions w, x, y, z of any length."""
    out = np.empty((log_scales.shape[0], 6))
    for k in numba.prange(log_scales.shape[0]):
        w, x, y, z, _ = _unit(quaternions[k])
        r = _rotation(w, x, y, z)
        a, b, c = np.exp(-2 * log_scales[k, 0]), np.exp(-2 * log_scales[k, 1]), np.exp(-2 * log_scales[k, 2])
        for place in range(6):
            i = place if place < 3 else (0 if place < 5 else 1)
            j = place if place < 3 else (1 if place == 3 else 2)
            out[k, place] = r[i][0] * a * r[j][0] + r[i][1] * b * r[j][1] + r[i][2] * c * r[j][2]
    return out


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def gradients(moments, peaks, entries, log_scales, quaternions):
    """The gradients of a function of the splat with respect to its Gaussians.

    Args:
        moments: (K, 10) float32, those of `cpu.moments`.
        peaks: (K,) values at the centres.
        entries: (K, 6) from `precisions`.
        log_scales, quaternions: as for `precisions`.
    Returns:
        (K, 10): with respect to the centre (3), the logarithms of σ at a constant peak (3), and the quaternion (4).
    """
    out = np.empty((log_scales.shape[0], 10))
    for k in numba.prange(log_scales.shape[0]):
        peak, m, p = peaks[k], moments[k], entries[k]
        mx, my, mz = peak * m[1], peak * m[2], peak * m[3]
        out[k, 0] = p[0] * mx + p[3] * my + p[4] * mz
        out[k, 1] = p[3] * mx + p[1] * my + p[5] * mz
        out[k, 2] = p[4] * mx + p[5] * my + p[2] * mz
        # G, the gradient with respect to the matrix Σ⁻¹: −½ Σ g d dᵀ, times the peak
        h = -0.5 * peak
        xx, yy, zz, xy, xz, yz = h * m[4], h * m[5], h * m[6], h * m[7], h * m[8], h * m[9]
        w, x, y, z, norm = _unit(quaternions[k])
        r = _rotation(w, x, y, z)
        d = np.empty((3, 3))  # the gradient with respect to R: 2 G R diag(w)
        for i in range(3):
            weight = np.exp(-2 * log_scales[k, i])
            gx = xx * r[0][i] + xy * r[1][i] + xz * r[2][i]
            gy = xy * r[0][i] + yy * r[1][i] + yz * r[2][i]
            gz = xz * r[0][i] + yz * r[1][i] + zz * r[2][i]
            out[k, 3 + i] = -2 * weight * (r[0][i] * gx + r[1][i] * gy + r[2][i] * gz)
            d[0, i], d[1, i], d[2, i] = 2 * weight * gx, 2 * weight * gy, 2 * weight * gz
        dw = 2 * (z * (d[1, 0] - d[0, 1]) + y * (d[0, 2] - d[2, 0]) + x * (d[2, 1] - d[1, 2]))
        dx = 2 * (
            y * (d[0, 1] + d[1, 0]) + z * (d[0, 2] + d[2, 0]) + w * (d[2, 1] - d[1, 2]) - 2 * x * (d[1, 1] + d[2, 2])
        )
        dy = 2 * (
            x * (d[0, 1] + d[1, 0]) + z * (d[1, 2] + d[2, 1]) + w * (d[0, 2] - d[2, 0]) - 2 * y * (d[0, 0] + d[2, 2])
        )
        dz = 2 * (
            x * (d[0, 2] + d[2, 0]) + y * (d[1, 2] + d[2, 1]) + w * (d[1, 0] - d[0, 1]) - 2 * z * (d[0, 0] + d[1, 1])
        )
        along = w * dw + x * dx + y * dy + z * dz  # the length of a quaternion does not matter
        out[k, 6], out[k, 7] = (dw - along * w) / norm, (dx - along * x) / norm
        out[k, 8], out[k, 9] = (dy - along * y) / norm, (dz - along * z) / norm
    return out
