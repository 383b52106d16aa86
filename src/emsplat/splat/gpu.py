"""The 3D splat on a graphics card: Triton kernels, forward and backward; geometry in float64, voxels in float32.

As on the CPU the Mahalanobis distance is completed to squares, ``m = A t² + B u² + C w²`` with
``t = dx + a dy + b dz``, ``u = dy + c dz``, ``w = dz``. A few lanes for each Gaussian walk through its planes, through
the rows of each plane that it covers, and along each row from where the cut-off begins. Gaussians are ordered by size,
since a program walks as many rows as its largest Gaussian has.
Forward: atomics add to the volume. The rows of one Gaussian are one or two sectors of the cache each, different
programs rarely meet in one voxel, and nothing has to be known on the host, so that a CUDA graph can record the work.
The order of the sums is not fixed: the last bit of a voxel may differ from run to run.
Backward: registers hold ten moments of (cotangent × Gaussian), from which the gradient follows; there are no atomics.
Nothing is stored besides the volume and the gradients.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Gaussians of a program and lanes of each: eight lanes add to fewer sectors, four leave fewer lanes idle. Ten moments
# of more than 16 Gaussians would not fit into the registers.
_ADDING, _READING = (32, 8), (16, 4)

# A number that happens to be 1 is compiled as any other.
_kernel = triton.jit(do_not_specialize=["n", "box_size"])
_COMPILED = {"num_warps": 1, "enable_fp_fusion": True}
_EXPONENT = tl.constexpr(-0.7213475204444817)  # exp(−m/2) = 2^(this × m)
_MARGIN = tl.constexpr(1e-3)  # voxels by which a row starts early, so that rounding loses no voxel


def splat(centres: Tensor, precisions: Tensor, peaks: Tensor, order: Tensor, box_size: int, cutoff: float) -> Tensor:
    """Sum of truncated Gaussians on a grid.

    Args:
        centres: (K, 3) float64 x, y, z in voxels from voxel 0.
        precisions: (K, 6) float64, Σ⁻¹ as xx, yy, zz, xy, xz, yz in 1/voxel².
        peaks: (K,) float32.
        order: (K,) int64, the Gaussians by size. All are contiguous.
        cutoff: Mahalanobis radius c.
    Returns:
        (D, D, D) float32.
    """
    volume = torch.zeros((box_size,) * 3, dtype=torch.float32, device=centres.device)
    if len(centres):
        launch = (triton.cdiv(len(centres), _ADDING[0]),)
        _splat[launch](volume, centres, precisions, peaks, order, len(centres), box_size, cutoff, *_ADDING, **_COMPILED)
    return volume


def gradients(
    centres: Tensor, precisions: Tensor, peaks: Tensor, order: Tensor, cotangent: Tensor, cutoff: float
) -> Tensor:
    """The gradients of `splat` for a contiguous cotangent (D, D, D) float32.

    Returns:
        (K, 10) float64: d centre x y z, d Σ⁻¹ as xx, yy, zz, xy, xz, yz (one of the two equal entries), d peak.
    """
    found = torch.zeros(len(centres), 10, dtype=torch.float64, device=centres.device)
    if len(centres):
        launch = (triton.cdiv(len(centres), _READING[0]),)
        _gradients[launch](
            found, cotangent, centres, precisions, peaks, order, len(centres), cotangent.shape[-1], cutoff, *_READING,
            **_COMPILED,
        )  # fmt: skip
    return found


# --- shared by the kernels --------------------------------------------------------------------------------------------


@triton.jit
def _squares(precisions, peaks, at, here):
    """A, B, C, a, b, c, the peak, and whether the Gaussian is valid; an invalid one becomes a unit ball with peak 0."""
    xx = tl.load(precisions + 6 * at, mask=here, other=1.0)
    yy = tl.load(precisions + 6 * at + 1, mask=here, other=1.0)
    zz = tl.load(precisions + 6 * at + 2, mask=here, other=1.0)
    xy = tl.load(precisions + 6 * at + 3, mask=here, other=0.0)
    xz = tl.load(precisions + 6 * at + 4, mask=here, other=0.0)
    yz = tl.load(precisions + 6 * at + 5, mask=here, other=0.0)
    peak = tl.load(peaks + at, mask=here, other=0.0)
    a, b = xy / xx, xz / xx
    second = yy - a * xy
    c = (yz - a * xz) / second
    third = zz - b * xz - c * c * second
    is_one = (xx > 0) & (xx < 1e30) & (second > 0) & (second < 1e30) & (third > 0) & (third < 1e30)  # NaN fails
    is_one = here & is_one & (tl.abs(peak) < float("inf"))
    xx, second, third = tl.where(is_one, xx, 1.0), tl.where(is_one, second, 1.0), tl.where(is_one, third, 1.0)
    a, b, c = tl.where(is_one, a, 0.0), tl.where(is_one, b, 0.0), tl.where(is_one, c, 0.0)
    return xx, second, third, a, b, c, tl.where(is_one, peak, 0.0), is_one


@triton.jit
def _anchor(place, box_size):
    """The coordinate of the box's voxel nearest to a centre, and the distance from the centre to it."""
    nearest = tl.minimum(tl.maximum(tl.floor(place + 0.5), 0.0), box_size - 1)  # in floats: a centre may lie anywhere
    return nearest.to(tl.int32), (nearest - place).to(tl.float32)


@triton.jit
def _placed(centres, at, use, third, box_size, cutoff):
    """First plane and number of planes; y, x of the voxel nearest to the centre; dz, dy, dx from the centre to them."""
    x = tl.load(centres + 3 * at, mask=use, other=0.0)
    y = tl.load(centres + 3 * at + 1, mask=use, other=0.0)
    z = tl.load(centres + 3 * at + 2, mask=use, other=0.0)
    half = cutoff / tl.sqrt(third)
    low, high = tl.ceil(z - half), tl.floor(z + half)
    # They are compared as floats, because a float beyond the integers' range has no defined integer. NaN covers none.
    some = use & (low <= high) & (low < box_size) & (high >= 0) & (x * 0 == 0) & (y * 0 == 0)
    x, y, z = tl.where(some, x, 0.0), tl.where(some, y, 0.0), tl.where(some, z, 0.0)
    low, high = tl.where(some, tl.maximum(low, 0.0), 0.0), tl.where(some, tl.minimum(high, box_size - 1), -1.0)
    row, dy = _anchor(y, box_size)
    column, dx = _anchor(x, box_size)
    plane = low.to(tl.int32)
    return plane, high.to(tl.int32) - plane + 1, row, column, (low - z).to(tl.float32), dy, dx


@triton.jit
def _chunks(per_aa, box_size, limit, LANES: tl.constexpr):
    """Number of steps of `LANES` columns that the widest row of these Gaussians takes."""
    columns = tl.minimum(2 * tl.sqrt(limit * per_aa) + 1 + 3 * _MARGIN, box_size.to(tl.float32))
    return tl.cdiv(tl.max(columns.to(tl.int32), axis=0), LANES)


@triton.jit
def _reached(middle, left, per_square, anchor, box_size, use):
    """First row or column of the box within the cut-off, counted from the anchor, and the number of them."""
    half = tl.sqrt(tl.maximum(left * per_square, 0.0)) + _MARGIN
    low, high = -anchor.to(tl.float32), (box_size - anchor).to(tl.float32)
    first = tl.minimum(tl.maximum(tl.ceil(middle - half), low), high).to(tl.int32)
    last = tl.minimum(tl.maximum(tl.floor(middle + half), low - 1), high - 1).to(tl.int32)
    return first, tl.where(use, last - first + 1, 0)


@triton.jit
def _found(centres, precisions, peaks, order, n, box_size, cutoff, GAUSSIANS: tl.constexpr):
    """A program's Gaussians: numbers, shapes in float64, peaks, positions, and what the loops need of the shapes."""
    k = tl.program_id(0) * GAUSSIANS + tl.arange(0, GAUSSIANS)
    here = k < n
    at = tl.load(order + k, mask=here, other=0)
    xx, yy, zz, a, b, c, peak, use = _squares(precisions, peaks, at, here)
    plane, planes, row, column, dz, dy, dx = _placed(centres, at, use, zz, box_size, cutoff)
    aa, bb, cc = (xx * _EXPONENT).to(tl.float32), (yy * _EXPONENT).to(tl.float32), (zz * _EXPONENT).to(tl.float32)
    return here, at, xx, yy, zz, a, b, c, peak, plane, planes, row, column, dz, dy, dx, aa, bb, cc


# --- the kernels ------------------------------------------------------------------------------------------------------


@_kernel
def _splat(
    volume, centres, precisions, peaks, order, n, box_size, cutoff,
    GAUSSIANS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    _, _, _, _, _, a64, b64, c64, peak, plane, planes, row, column, dz0, dy0, dx0, aa, bb, cc = _found(
        centres, precisions, peaks, order, n, box_size, cutoff, GAUSSIANS
    )
    a, b, c = a64.to(tl.float32), b64.to(tl.float32), c64.to(tl.float32)
    limit = cutoff * cutoff * _EXPONENT
    lanes = tl.arange(0, LANES)[None, :]
    per_aa, per_bb = 1 / aa, 1 / bb
    chunks = _chunks(per_aa, box_size, limit, LANES)
    for p in range(tl.max(planes, axis=0)):
        w = dz0 + p
        beyond = cc * w * w
        first, rows = _reached(-dy0 - c * w, limit - beyond, per_bb, row, box_size, p < planes)
        line = volume + ((plane + p).to(tl.int64) * box_size + (row + first)) * box_size + column
        for r in range(tl.max(rows, axis=0)):
            dy = dy0 + (first + r)
            u = dy + c * w
            across = bb * u * u + beyond
            middle = -dx0 - a * dy - b * w
            start, columns = _reached(middle, limit - across, per_aa, column, box_size, r < rows)
            t0 = start - middle
            for chunk in range(chunks):
                step = lanes + chunk * LANES
                t = t0[:, None] + step
                exponent = aa[:, None] * t * t + across[:, None]
                within = (exponent >= limit) & (step < columns[:, None])
                value = peak[:, None] * tl.exp2(exponent)
                tl.atomic_add((line + start)[:, None] + step, value, mask=within, sem="relaxed")
            line += box_size


@_kernel
def _gradients(
    found, cotangent, centres, precisions, peaks, order, n, box_size, cutoff,
    GAUSSIANS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    here, at, xx, yy, zz, a64, b64, c64, peak, plane, planes, row, column, dz0, dy0, dx0, aa, bb, cc = _found(
        centres, precisions, peaks, order, n, box_size, cutoff, GAUSSIANS
    )
    a, b, c = a64.to(tl.float32), b64.to(tl.float32), c64.to(tl.float32)
    limit = cutoff * cutoff * _EXPONENT
    lanes = tl.arange(0, LANES)[None, :]
    per_aa, per_bb = 1 / aa, 1 / bb
    chunks = _chunks(per_aa, box_size, limit, LANES)
    m = tl.zeros([GAUSSIANS, LANES], dtype=tl.float32)
    mt, mu, mw, mtt, muu, mww, mtu, mtw, muw = m, m, m, m, m, m, m, m, m
    for p in range(tl.max(planes, axis=0)):
        w = dz0 + p
        beyond = cc * w * w
        first, rows = _reached(-dy0 - c * w, limit - beyond, per_bb, row, box_size, p < planes)
        line = cotangent + ((plane + p).to(tl.int64) * box_size + (row + first)) * box_size + column
        for r in range(tl.max(rows, axis=0)):
            dy = dy0 + (first + r)
            u = dy + c * w
            across = bb * u * u + beyond
            middle = -dx0 - a * dy - b * w
            start, columns = _reached(middle, limit - across, per_aa, column, box_size, r < rows)
            t0 = start - middle
            for chunk in range(chunks):
                step = lanes + chunk * LANES
                t = t0[:, None] + step
                exponent = aa[:, None] * t * t + across[:, None]
                within = (exponent >= limit) & (step < columns[:, None])
                value = tl.load((line + start)[:, None] + step, mask=within, other=0.0)
                g = value * tl.exp2(exponent)
                gt, gu, gw = g * t, g * u[:, None], g * w[:, None]
                m += g
                mt += gt
                mu += gu
                mw += gw
                mtt += gt * t
                muu += gu * u[:, None]
                mww += gw * w[:, None]
                mtu += gt * u[:, None]
                mtw += gt * w[:, None]
                muw += gu * w[:, None]
            line += box_size
    to = found + 10 * at
    peak = peak.to(tl.float64)
    # d centre is Σ⁻¹ d, which is computed from the squares so that no term cancels another.
    x = peak * xx * tl.sum(mt, axis=1)
    y = peak * yy * tl.sum(mu, axis=1)
    z = peak * zz * tl.sum(mw, axis=1)
    tl.store(to, x, mask=here)
    tl.store(to + 1, a64 * x + y, mask=here)
    tl.store(to + 2, b64 * x + c64 * y + z, mask=here)
    # d Σ⁻¹ is −½ d dᵀ, with dz = w, dy = u − c w, dx = t + e w − a u.
    e = a64 * c64 - b64
    half = -0.5 * peak
    tt, uu, ww = tl.sum(mtt, axis=1), tl.sum(muu, axis=1), tl.sum(mww, axis=1)
    tu, tw, uw = tl.sum(mtu, axis=1), tl.sum(mtw, axis=1), tl.sum(muw, axis=1)
    xw = tw + e * ww - a64 * uw
    xu = tu + e * uw - a64 * uu
    xt = tt + e * tw - a64 * tu
    tl.store(to + 3, half * (xt + e * xw - a64 * xu), mask=here)
    tl.store(to + 4, half * (uu - 2 * c64 * uw + c64 * c64 * ww), mask=here)
    tl.store(to + 5, half * ww, mask=here)
    tl.store(to + 6, half * (xu - c64 * xw), mask=here)
    tl.store(to + 7, half * xw, mask=here)
    tl.store(to + 8, half * (uw - c64 * ww), mask=here)
    tl.store(to + 9, tl.sum(m, axis=1).to(tl.float64), mask=here)
