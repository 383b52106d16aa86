"""The projecting splat on a graphics card: Triton kernels for many images a launch, forward and backward.

There are three steps, so that neighbouring lanes compute nothing twice (docs/gpu.md has the arithmetic):

1. `_shadows`: a lane for each Gaussian and image finds the shadow, in float64, and leaves nine numbers of it in scratch
   memory. As on the CPU the Mahalanobis distance is completed to squares, ``m = A t² + B dy²`` with ``t = dx + a dy``.
2. `_splat` or `_moments`: a few lanes for each Gaussian walk through its shadow row by row in float32, each row from
   where the cut-off begins. A program holds 32 Gaussians of one image. They are ordered by size, since it walks as many
   rows as the largest of them has. Forward adds to the image by atomics: a row of a shadow is one or two sectors of the
   cache, different programs rarely meet in one pixel, and neither a list nor a sort is needed. Backward reads the
   cotangent and reduces it to six moments of (cotangent × Gaussian) in registers.
3. `_pull_back`: a lane for each Gaussian takes the moments of one image after another and sums the gradient by the
   Gaussian in registers, in float64. Gradients by the poses are summed over the program's Gaussians, stored for each
   program, and summed again: the backward pass has no atomics, and the same sums in every run.

Scratch memory is bounded by `_SCRATCH_BYTES`, which limits the number of images that are taken at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

_SCRATCH_BYTES = 64 << 20
_MOST_IMAGES = 65_535  # a launch's limit along its second axis
_PARTS = 8  # number of parts of the images in the backward pass, for more programs than Gaussians alone would give
_WIDE, _IN_TURN = 128, 8  # Gaussians of a program that finds shadows, and images that it takes in turn
_GAUSSIANS, _PULLED = 32, 64  # Gaussians of a program that walks shadows, and of one that pulls moments back
_ADDING, _READING = 8, 4  # lanes of a Gaussian: eight lanes add to fewer sectors, four leave fewer lanes idle
_FLOATS, _INTEGERS, _MOMENTS = 6, 3, 6  # numbers stored for a shadow

# A number that happens to be 1 is compiled as any other.
_kernel = triton.jit(do_not_specialize=["n", "n_images", "box_size", "share"])
_EXPONENT = tl.constexpr(-0.7213475204444817)  # exp(−m/2) = 2^(this × m)
_MARGIN = tl.constexpr(1e-3)  # pixels by which a row starts early, so that rounding loses no pixel


def project(
    centres: Tensor,
    covariances: Tensor,
    weights: Tensor,
    order: Tensor,
    rotations: Tensor,
    origins: Tensor,
    box_size: int,
    cutoff: float,
) -> Tensor:
    """`reference.project` in float32.

    Args:
        centres: (K, 3) float64; covariances: (K, 6) float64 as xx, yy, zz, xy, xz, yz; weights: (K,) float64.
        order: (K,) int64, the Gaussians by size.
        rotations: (B, 3, 3) float64; origins: (B, 2) float64. All are contiguous.
    Returns:
        (B, D, D) float32.
    """
    images = torch.zeros(len(rotations), box_size, box_size, dtype=torch.float32, device=centres.device)
    gaussians = (centres, covariances, weights, order)
    for part in _parts(len(centres), len(rotations)):
        launch = (triton.cdiv(len(centres), _GAUSSIANS), len(rotations[part]))
        shadows = _shadows_of(gaussians, rotations[part], origins[part], box_size, cutoff)
        _splat[launch](images[part], *shadows, len(centres), box_size, cutoff, _GAUSSIANS, _ADDING, **_COMPILED)
        del shadows  # before the next ones need room
    return images


def gradients(
    centres: Tensor,
    covariances: Tensor,
    weights: Tensor,
    order: Tensor,
    rotations: Tensor,
    origins: Tensor,
    cotangent: Tensor,
    cutoff: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of `project` for a contiguous cotangent (B, D, D) float32.

    Returns, both float64:
        (K, 10) d centre x y z, d Σ as xx, yy, zz, xy, xz, yz (one of the two equal entries), d weight;
        (B, 8) d A, its first two rows, then d origin.
    """
    n, n_images, device = len(centres), len(rotations), centres.device
    n_parts = max(1, min(_PARTS, (1 << 18) // max(1, n)))
    of_gaussians = torch.zeros(n_parts, n, 10, dtype=torch.float64, device=device)
    of_images = torch.zeros(n_images, 8, dtype=torch.float64, device=device)
    gaussians = (centres, covariances, weights, order)
    for part in _parts(n, n_images):
        frames, places = rotations[part], origins[part]
        moments = _moments_of(gaussians, frames, places, cotangent[part], cutoff)
        launch, m = (triton.cdiv(n, _PULLED), n_parts), len(frames)
        of_programs = torch.empty(launch[0], m, 8, dtype=torch.float64, device=device)
        _pull_back[launch](
            of_gaussians, of_programs, moments, *gaussians, frames, places, n, m, triton.cdiv(m, n_parts), _PULLED,
            **_COMPILED,
        )  # fmt: skip
        of_images[part] = of_programs.sum(dim=0)
        del moments  # before the next ones need room
    return of_gaussians.sum(dim=0), of_images


_COMPILED = {"num_warps": 1, "enable_fp_fusion": True}


def _parts(n: int, n_images: int) -> Iterator[slice]:
    """Slices over the images, as many at a time as the scratch memory holds; none if there is nothing to do."""
    at_once = _SCRATCH_BYTES // (4 * (_FLOATS + _INTEGERS + _MOMENTS) * max(1, n))
    at_once = min(max(1, at_once), _MOST_IMAGES)
    return (slice(first, first + at_once) for first in range(0, n_images if n else 0, at_once))


def _shadows_of(
    gaussians: tuple[Tensor, ...], frames: Tensor, places: Tensor, box_size: int, cutoff: float
) -> tuple[Tensor, Tensor]:
    """(6, B, K) float32 and (3, B, K) int32 numbers of the shadows, which `_shadows` describes."""
    n, m = len(gaussians[0]), len(frames)
    numbers = torch.empty(_FLOATS, m, n, dtype=torch.float32, device=frames.device)
    reach = torch.empty(_INTEGERS, m, n, dtype=torch.int32, device=frames.device)
    launch = (triton.cdiv(n, _WIDE), triton.cdiv(m, _IN_TURN))
    _shadows[launch](
        numbers, reach, *gaussians, frames, places, n, m, box_size, cutoff, _WIDE, _IN_TURN,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return numbers, reach


def _moments_of(
    gaussians: tuple[Tensor, ...], frames: Tensor, places: Tensor, cotangent: Tensor, cutoff: float
) -> Tensor:
    """(6, B, K) float32 moments, which `_moments` describes."""
    n, m, box_size = len(gaussians[0]), len(frames), cotangent.shape[-1]
    shadows = _shadows_of(gaussians, frames, places, box_size, cutoff)
    moments = torch.empty(_MOMENTS, m, n, dtype=torch.float32, device=frames.device)
    launch = (triton.cdiv(n, _GAUSSIANS), m)
    _moments[launch](moments, cotangent, *shadows, n, m, box_size, cutoff, _GAUSSIANS, _READING, **_COMPILED)
    return moments


# --- shared by the kernels --------------------------------------------------------------------------------------------


@triton.jit
def _loaded(centres, covariances, weights, at, here):
    """Centre, Σ and weight; all 0 for a Gaussian that is not finite."""
    x = tl.load(centres + 3 * at, mask=here, other=0.0)
    y = tl.load(centres + 3 * at + 1, mask=here, other=0.0)
    z = tl.load(centres + 3 * at + 2, mask=here, other=0.0)
    xx = tl.load(covariances + 6 * at, mask=here, other=0.0)
    yy = tl.load(covariances + 6 * at + 1, mask=here, other=0.0)
    zz = tl.load(covariances + 6 * at + 2, mask=here, other=0.0)
    xy = tl.load(covariances + 6 * at + 3, mask=here, other=0.0)
    xz = tl.load(covariances + 6 * at + 4, mask=here, other=0.0)
    yz = tl.load(covariances + 6 * at + 5, mask=here, other=0.0)
    weight = tl.load(weights + at, mask=here, other=0.0)
    # Only a finite number times 0 gives 0.
    finite = (x * 0 + y * 0 + z * 0 + xx * 0 + yy * 0 + zz * 0 + xy * 0 + xz * 0 + yz * 0 + weight * 0) == 0
    x, y, z = tl.where(finite, x, 0.0), tl.where(finite, y, 0.0), tl.where(finite, z, 0.0)
    xx, yy, zz = tl.where(finite, xx, 0.0), tl.where(finite, yy, 0.0), tl.where(finite, zz, 0.0)
    xy, xz, yz = tl.where(finite, xy, 0.0), tl.where(finite, xz, 0.0), tl.where(finite, yz, 0.0)
    return x, y, z, xx, yy, zz, xy, xz, yz, tl.where(finite, weight, 0.0)


@triton.jit
def _frame(rotations, image):
    """The first two rows of A."""
    a = rotations + 9 * image
    return tl.load(a), tl.load(a + 1), tl.load(a + 2), tl.load(a + 3), tl.load(a + 4), tl.load(a + 5)


@triton.jit
def _times(xx, yy, zz, xy, xz, yz, x, y, z):
    """Product of a symmetric matrix with a vector."""
    return xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z


@triton.jit
def _shape(xx, yy, zz, xy, xz, yz, p0, p1, p2, q0, q1, q2):
    """S as xx, xy, yy, |S|, and whether S is valid; an invalid S becomes a unit circle.

    S is invalid if it is not positive definite, or too small or large for float32.
    """
    u0, u1, u2 = _times(xx, yy, zz, xy, xz, yz, p0, p1, p2)
    v0, v1, v2 = _times(xx, yy, zz, xy, xz, yz, q0, q1, q2)
    sxx = u0 * p0 + u1 * p1 + u2 * p2
    sxy = u0 * q0 + u1 * q1 + u2 * q2
    syy = v0 * q0 + v1 * q1 + v2 * q2
    determinant = sxx * syy - sxy * sxy
    is_one = (syy > 1e-30) & (syy < 1e30) & (determinant > 1e-30 * syy)
    sxx, sxy, syy = tl.where(is_one, sxx, 1.0), tl.where(is_one, sxy, 0.0), tl.where(is_one, syy, 1.0)
    return sxx, sxy, syy, tl.where(is_one, determinant, 1.0), is_one


@triton.jit
def _span(middle, half_width, last):
    """First and last integer within half_width of the middle and within 0..last; (0, −1) for none and for NaN.

    They are compared as floats, because a float beyond the integers' range has no defined integer.
    """
    low, high = tl.ceil(middle - half_width), tl.floor(middle + half_width)
    some = (low <= high) & (low <= last) & (high >= 0)
    low, high = tl.where(some, low, 0.0), tl.where(some, high, -1.0)
    return tl.maximum(low, 0.0).to(tl.int32), tl.minimum(high, last).to(tl.int32)


@triton.jit
def _shadow(numbers, reach, image, k, n, n_images):
    """A shadow as `_shadows` wrote it; beyond the last Gaussian, a shadow without rows."""
    here = k < n
    field = n_images * n
    at = image * n + k
    dx = tl.load(numbers + at, mask=here, other=0.0)
    dy = tl.load(numbers + field + at, mask=here, other=0.0)
    a = tl.load(numbers + 2 * field + at, mask=here, other=-1.0)
    slope = tl.load(numbers + 3 * field + at, mask=here, other=0.0)
    b = tl.load(numbers + 4 * field + at, mask=here, other=-1.0)
    peak = tl.load(numbers + 5 * field + at, mask=here, other=0.0)
    first = tl.load(reach + at, mask=here, other=0)
    rows = tl.load(reach + field + at, mask=here, other=0)
    last = tl.load(reach + 2 * field + at, mask=here, other=-1)
    return dx, dy, a, slope, b, peak, first, rows, last


@triton.jit
def _chunks(per_a, last, limit, LANES: tl.constexpr):
    """Number of steps of `LANES` columns that the widest row of these shadows takes."""
    columns = tl.minimum(2 * tl.sqrt(limit * per_a) + 1 + 3 * _MARGIN, (last + 1).to(tl.float32))
    return tl.cdiv(tl.max(columns.to(tl.int32), axis=0), LANES)


@triton.jit
def _row(r, dx, dy, per_a, slope, b, limit):
    """dy, its term of the exponent, the first column within the cut-off (from the extent's first column), and its t."""
    dy = dy + r
    along = b * dy * dy
    middle = -dx - slope * dy
    half = tl.sqrt(tl.maximum((limit - along) * per_a, 0.0))
    start = tl.maximum(tl.ceil(middle - half - _MARGIN), 0.0)
    return dy, along, start, start - middle


# --- the kernels ------------------------------------------------------------------------------------------------------


@_kernel
def _shadows(
    numbers, reach, centres, covariances, weights, order, rotations, origins, n, n_images, box_size, cutoff,
    GAUSSIANS: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """Store for each shadow: dx, dy of the first pixel of its extent, the exponent's A and B, a, peak; that pixel, the
    number of rows, the last column counted from the first. A shadow that is invalid or lies outside has no rows."""
    k = tl.program_id(0) * GAUSSIANS + tl.arange(0, GAUSSIANS)
    here = k < n
    at = tl.load(order + k, mask=here, other=0)
    x, y, z, xx, yy, zz, xy, xz, yz, weight = _loaded(centres, covariances, weights, at, here)
    begin = tl.program_id(1) * IMAGES
    for image in range(begin, tl.minimum(begin + IMAGES, n_images)):
        p0, p1, p2, q0, q1, q2 = _frame(rotations, image)
        sx = p0 * x + p1 * y + p2 * z + tl.load(origins + 2 * image)
        sy = q0 * x + q1 * y + q2 * z + tl.load(origins + 2 * image + 1)
        sxx, sxy, syy, determinant, is_one = _shape(xx, yy, zz, xy, xz, yz, p0, p1, p2, q0, q1, q2)
        peak = (weight / tl.sqrt(determinant)).to(tl.float32)
        x0, x1 = _span(sx, cutoff * tl.sqrt(sxx), box_size - 1)
        y0, y1 = _span(sy, cutoff * tl.sqrt(syy), box_size - 1)
        seen = is_one & (x1 >= x0) & (y1 >= y0) & (tl.abs(peak) < float("inf"))
        to = numbers + image * n + k
        field = n_images * n
        tl.store(to, tl.where(seen, x0 - sx, 0.0).to(tl.float32), mask=here)
        tl.store(to + field, tl.where(seen, y0 - sy, 0.0).to(tl.float32), mask=here)
        tl.store(to + 2 * field, (syy * _EXPONENT / determinant).to(tl.float32), mask=here)
        tl.store(to + 3 * field, (-sxy / syy).to(tl.float32), mask=here)
        tl.store(to + 4 * field, (1 / syy * _EXPONENT).to(tl.float32), mask=here)
        tl.store(to + 5 * field, tl.where(seen, peak, 0.0), mask=here)
        to = reach + image * n + k
        tl.store(to, y0 * box_size + x0, mask=here)
        tl.store(to + field, tl.where(seen, y1 - y0 + 1, 0), mask=here)
        tl.store(to + 2 * field, tl.where(seen, x1 - x0, -1), mask=here)


@_kernel
def _splat(images, numbers, reach, n, box_size, cutoff, GAUSSIANS: tl.constexpr, LANES: tl.constexpr):
    """Add shadows to their images."""
    k = tl.program_id(0) * GAUSSIANS + tl.arange(0, GAUSSIANS)
    image = tl.program_id(1)
    dx, dy, a, slope, b, peak, first, rows, last = _shadow(numbers, reach, image, k, n, tl.num_programs(1))
    limit = cutoff * cutoff * _EXPONENT
    target = images + image.to(tl.int64) * box_size * box_size + first
    lanes = tl.arange(0, LANES)[None, :]
    per_a = 1 / a
    chunks = _chunks(per_a, last, limit, LANES)
    for r in range(tl.max(rows, axis=0)):
        _, along, start, t0 = _row(r, dx, dy, per_a, slope, b, limit)
        column, end = start.to(tl.int32), tl.where(r < rows, last, -1)
        row = target + r * box_size + column
        for chunk in range(chunks):
            step = lanes + chunk * LANES
            t = t0[:, None] + step
            exponent = a[:, None] * t * t + along[:, None]
            within = (exponent >= limit) & (column[:, None] + step <= end[:, None])
            tl.atomic_add(row[:, None] + step, peak[:, None] * tl.exp2(exponent), mask=within, sem="relaxed")


@_kernel
def _moments(
    moments, cotangent, numbers, reach, n, n_images, box_size, cutoff, GAUSSIANS: tl.constexpr, LANES: tl.constexpr
):
    """Σ g, Σ g·(t, dy), Σ g·(t², t dy, dy²) of each shadow, with g = cotangent × exp(−m/2)."""
    k = tl.program_id(0) * GAUSSIANS + tl.arange(0, GAUSSIANS)
    image = tl.program_id(1)
    dx, dy0, a, slope, b, _, first, rows, last = _shadow(numbers, reach, image, k, n, n_images)
    limit = cutoff * cutoff * _EXPONENT
    source = cotangent + image.to(tl.int64) * box_size * box_size + first
    lanes = tl.arange(0, LANES)[None, :]
    per_a = 1 / a
    chunks = _chunks(per_a, last, limit, LANES)
    m = tl.zeros([GAUSSIANS, LANES], dtype=tl.float32)
    mt, my, mtt, mty, myy = m, m, m, m, m
    for r in range(tl.max(rows, axis=0)):
        dy, along, start, t0 = _row(r, dx, dy0, per_a, slope, b, limit)
        column, end = start.to(tl.int32), tl.where(r < rows, last, -1)
        row = source + r * box_size + column
        dyy = dy * dy
        for chunk in range(chunks):
            step = lanes + chunk * LANES
            t = t0[:, None] + step
            exponent = a[:, None] * t * t + along[:, None]
            within = (exponent >= limit) & (column[:, None] + step <= end[:, None])
            g = tl.load(row[:, None] + step, mask=within, other=0.0) * tl.exp2(exponent)
            gt = g * t
            m += g
            mt += gt
            my += g * dy[:, None]
            mtt += gt * t
            mty += gt * dy[:, None]
            myy += g * dyy[:, None]
    here = k < n
    field = n_images * n
    to = moments + image * n + k
    tl.store(to, tl.sum(m, axis=1), mask=here)
    tl.store(to + field, tl.sum(mt, axis=1), mask=here)
    tl.store(to + 2 * field, tl.sum(my, axis=1), mask=here)
    tl.store(to + 3 * field, tl.sum(mtt, axis=1), mask=here)
    tl.store(to + 4 * field, tl.sum(mty, axis=1), mask=here)
    tl.store(to + 5 * field, tl.sum(myy, axis=1), mask=here)


@_kernel
def _pull_back(
    of_gaussians, of_programs, moments, centres, covariances, weights, order, rotations, origins, n, n_images, share,
    GAUSSIANS: tl.constexpr,
):  # fmt: skip
    """Compute gradients from moments. Those by the Gaussians are summed over a share of the images and added to the
    stored ones; those by the poses are summed over the program's Gaussians."""
    k = tl.program_id(0) * GAUSSIANS + tl.arange(0, GAUSSIANS)
    here = k < n
    at = tl.load(order + k, mask=here, other=0)
    x, y, z, xx, yy, zz, xy, xz, yz, weight = _loaded(centres, covariances, weights, at, here)
    field = n_images * n
    zero = tl.zeros([GAUSSIANS], dtype=tl.float64)
    dx, dy, dz, dxx, dyy, dzz, dxy, dxz, dyz, d_weight = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    begin = tl.program_id(1) * share
    for image in range(begin, tl.minimum(begin + share, n_images)):
        p0, p1, p2, q0, q1, q2 = _frame(rotations, image)
        _, sxy, syy, determinant, _ = _shape(xx, yy, zz, xy, xz, yz, p0, p1, p2, q0, q1, q2)
        height, a, b, slope = 1 / tl.sqrt(determinant), syy / determinant, 1 / syy, -sxy / syy
        source = moments + image * n + k
        m = tl.load(source, mask=here, other=0.0).to(tl.float64)
        mt = tl.load(source + field, mask=here, other=0.0).to(tl.float64)
        my = tl.load(source + 2 * field, mask=here, other=0.0).to(tl.float64)
        mtt = tl.load(source + 3 * field, mask=here, other=0.0).to(tl.float64)
        mty = tl.load(source + 4 * field, mask=here, other=0.0).to(tl.float64)
        myy = tl.load(source + 5 * field, mask=here, other=0.0).to(tl.float64)
        # The derivative by the shadow's centre is S⁻¹ d, and by S it is ½ S⁻¹ (d dᵀ − S) S⁻¹,
        # where S⁻¹ d = (A t, a A t + B dy).
        peak = weight * height
        fx = peak * a * mt
        fy = slope * fx + peak * b * my
        tt, ty, ss = 0.5 * peak * (a * a * mtt - a * m), 0.5 * peak * a * b * mty, 0.5 * peak * (b * b * myy - b * m)
        gxx, gxy, gyy = tt, slope * tt + ty, slope * (slope * tt + 2 * ty) + ss
        u0, u1, u2 = gxx * p0 + gxy * q0, gxx * p1 + gxy * q1, gxx * p2 + gxy * q2
        v0, v1, v2 = gxy * p0 + gyy * q0, gxy * p1 + gyy * q1, gxy * p2 + gyy * q2
        dx += fx * p0 + fy * q0
        dy += fx * p1 + fy * q1
        dz += fx * p2 + fy * q2
        dxx += p0 * u0 + q0 * v0
        dyy += p1 * u1 + q1 * v1
        dzz += p2 * u2 + q2 * v2
        dxy += p0 * u1 + q0 * v1
        dxz += p0 * u2 + q0 * v2
        dyz += p1 * u2 + q1 * v2
        d_weight += height * m
        up0, up1, up2 = _times(xx, yy, zz, xy, xz, yz, u0, u1, u2)
        vp0, vp1, vp2 = _times(xx, yy, zz, xy, xz, yz, v0, v1, v2)
        to = of_programs + 8 * (tl.program_id(0) * n_images + image)
        tl.store(to, tl.sum(fx * x + 2 * up0, axis=0))
        tl.store(to + 1, tl.sum(fx * y + 2 * up1, axis=0))
        tl.store(to + 2, tl.sum(fx * z + 2 * up2, axis=0))
        tl.store(to + 3, tl.sum(fy * x + 2 * vp0, axis=0))
        tl.store(to + 4, tl.sum(fy * y + 2 * vp1, axis=0))
        tl.store(to + 5, tl.sum(fy * z + 2 * vp2, axis=0))
        tl.store(to + 6, tl.sum(fx, axis=0))
        tl.store(to + 7, tl.sum(fy, axis=0))
    to = of_gaussians + 10 * (tl.program_id(1) * n + at)
    tl.store(to, tl.load(to, mask=here) + dx, mask=here)
    tl.store(to + 1, tl.load(to + 1, mask=here) + dy, mask=here)
    tl.store(to + 2, tl.load(to + 2, mask=here) + dz, mask=here)
    tl.store(to + 3, tl.load(to + 3, mask=here) + dxx, mask=here)
    tl.store(to + 4, tl.load(to + 4, mask=here) + dyy, mask=here)
    tl.store(to + 5, tl.load(to + 5, mask=here) + dzz, mask=here)
    tl.store(to + 6, tl.load(to + 6, mask=here) + dxy, mask=here)
    tl.store(to + 7, tl.load(to + 7, mask=here) + dxz, mask=here)
    tl.store(to + 8, tl.load(to + 8, mask=here) + dyz, mask=here)
    tl.store(to + 9, tl.load(to + 9, mask=here) + d_weight, mask=here)
