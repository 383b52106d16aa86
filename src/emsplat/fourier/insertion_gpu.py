"""Insertion of Fourier slices on a graphics card by a Triton kernel, as `insertion` does it on the processor.

The grid, its halo, the window and its table are those of `insertion`. The work is split differently: a program takes
some samples of one slice and adds each to its 4³ grid points with atomics. The atomics are not the limit (docs/gpu.md
has the arithmetic). The four taps along x are neighbours in memory and lie in one or two sectors of the cache, and
programs that run at the same time belong to a few slices, whose slabs of grid points stay in the cache. The order of
the sums, and with it their last bits, differs from run to run.

If k and −k both lie in the slice, the one with z ≥ 0 is inserted. The other one is inserted as well if its kernel
extends into the stored half. These are few, and whole programs skip the second insertion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from emsplat.fourier.insertion import HALO, STEPS, WIDTH, grid_period, grid_shape, row_ends, taps_and_slopes
from emsplat.fourier.insertion import frames_of as frames_of_matrices
from emsplat.fourier.window import Window

_VALUES = 512  # floats that a program adds at once: samples × taps along x × (real and imaginary part)
_AT_ONCE_BYTES = 256 << 20  # bytes of the planes that are transformed together in the end
_MOST_SLICES = 65_535  # limit of a launch along its second axis

_steps = tl.constexpr(STEPS)
_reach = tl.constexpr(WIDTH / 2)
_halo = tl.constexpr(HALO)


@dataclass(frozen=True)
class Views:
    """The positions of slices in the volume on one device, in the form that the kernel reads."""

    frames: Tensor  # (n, 3, 2) float32 from `insertion.frames_of`
    ends: Tensor  # (n, 2r+1, 2) float32 from `insertion.row_ends`

    @staticmethod
    def arrays(matrices: NDArray[np.float64], box_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both arrays for (n, 3, 3) matrices B, on the host; ValueError if a matrix spans no plane."""
        frames = frames_of_matrices(matrices)
        return frames, row_ends(frames.astype(np.float64), box_size)


@dataclass
class DeviceGrids:
    """`insertion.SliceGrid` for several sets of slices that share a geometry, in one tensor."""

    extent: int  # voxels of the real-space cube that is wanted, per axis
    box_size: int  # D of the slices: their samples lie at integer multiples of 1/D
    period: int  # n: grid points per axis
    values: Tensor  # (sets, n/2+1+2 halo, n+2 halo, n+2 halo) complex64 or float32
    samples: Tensor  # (m, 2) int32 kx ≥ 0, ky of a half plane below Nyquist's radius
    taps: Tensor  # (STEPS + 1, 8) from `insertion.taps_and_slopes`

    @staticmethod
    def empty(n_sets: int, extent: int, box_size: int, dtype: torch.dtype, device: torch.device) -> DeviceGrids:
        """Grids of zeros, complex64 or float32, for slices of that type."""
        period = grid_period(extent, box_size)
        values = torch.zeros((n_sets, *grid_shape(period)), dtype=dtype, device=device)
        window = Window.for_oversampling(WIDTH, period / extent)
        tables = (torch.from_numpy(a).to(device) for a in (_samples(box_size), taps_and_slopes(window)))
        return DeviceGrids(extent, box_size, period, values, *tables)

    @staticmethod
    def bytes_needed(n_sets: int, extent: int, box_size: int, dtype: torch.dtype) -> int:
        """Number of bytes of the grids and of the final transforms."""
        period = grid_period(extent, box_size)
        planes, rows, columns = grid_shape(period)
        finish = 8 * (period // 2 + 1) * extent**2 + 4 * extent**3 + 3 * max(_AT_ONCE_BYTES, 8 * rows * columns)
        return n_sets * planes * rows * columns * dtype.itemsize + finish

    def insert(
        self, slices: Tensor, views: Views, sets: Tensor, images: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Add slices at ``k_volume = Bᵀ (k_x, k_y, 0)``, each once or as often as it is listed; takes no memory.

        Args:
            slices: (n, D, D//2+1) half planes of the grids' type, contiguous, ky in fft order.
            sets: (m,) int32 number of the set that each addition goes to.
            images: (m,) int32 number of each added slice; it needs weights. None: m = n, and each slice is added once.
            weights: (m,) float32 factor on the slice in each addition; None: 1.
        Raises:
            ValueError: the slices have another type or layout, which the kernel would misread.

        Samples at or beyond Nyquist's radius, |k| ≥ D/2 in the slice or in the volume, are left out.
        """
        if slices.dtype != self.values.dtype or not slices.is_contiguous():
            raise ValueError(f"slices must be contiguous {self.values.dtype}, these are {slices.dtype}")
        components = 2 if self.values.is_complex() else 1
        block = _VALUES // (WIDTH * components)
        n_samples, (planes, across) = len(self.samples), self.values.shape[1:3]
        floats = (torch.view_as_real(t) if t.is_complex() else t for t in (self.values, slices))
        grids, planes_of_images = floats
        listed = images is not None and weights is not None
        for first in range(0, len(sets), _MOST_SLICES):
            part = slice(first, first + _MOST_SLICES)
            here = slice(None) if listed else part
            which, scales = (images[part], weights[part]) if listed else (sets, views.frames)  # type: ignore[index]
            launch = (triton.cdiv(n_samples, block), len(sets[part]))
            _insert[launch](
                grids, planes_of_images[here], views.frames[here], views.ends[here], sets[part], which, scales,
                self.samples, self.taps, self.period / self.box_size, n_samples, self.box_size, planes, across,
                LISTED=listed, COMPONENTS=components, BLOCK=block, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip

    def of(self, number: int) -> DeviceGrid:
        """One of the sets, without a copy."""
        return DeviceGrid(self.extent, self.period, self.values[number])


@dataclass(frozen=True)
class DeviceGrid:
    """A filled `insertion.SliceGrid` on a device."""

    extent: int
    period: int
    values: Tensor  # (n/2+1+2 halo, n+2 halo, n+2 halo) complex64 or float32

    def backprojection(self) -> NDArray[np.float32]:
        """(extent,)*3 real-space sum ``Σ value · exp(+2πi k·r / D)`` over all samples, r from −(extent//2).

        Only some planes are transformed at a time, so that the whole complex grid never exists.
        """
        n, e, device = self.period, self.extent, self.values.device
        r = torch.arange(e, device=device) - e // 2
        places = r % n
        half = torch.empty((n // 2 + 1, e, e), dtype=torch.complex64, device=device)
        at_once = max(1, _AT_ONCE_BYTES // (8 * n**2))
        for first in range(0, len(half), at_once):
            planes = self._planes(first, min(first + at_once, len(half)))
            across = torch.fft.ifft(planes, dim=1)[:, places]
            half[first : first + at_once] = torch.fft.ifft(across, dim=2)[:, :, places]
        volume = torch.empty((e, e, e), dtype=torch.float32, device=device)
        at_once = max(1, _AT_ONCE_BYTES // (8 * n * e))
        for first in range(0, e, at_once):
            rows = slice(first, first + at_once)
            volume[:, rows] = torch.fft.irfft(half[:, rows], n=n, dim=0)[places]
        del half
        window = Window.for_oversampling(WIDTH, n / e).transform((np.arange(e) - e // 2) / n) / n
        scale = torch.from_numpy(1 / window).to(device, torch.float32)
        return volume.mul_(scale[:, None, None]).mul_(scale[:, None]).mul_(scale).cpu().numpy()

    def _planes(self, first: int, last: int) -> Tensor:
        """(last − first, n, n) planes of a periodic grid in fft order; samples beyond the edge are folded back."""
        n = self.period
        planes = self._wrapped(first, last)
        for z in range(max(first, n // 2 - HALO), last):
            # Plane n − z is the conjugate mirror image of plane z; as far as it is stored, it holds spread samples.
            mirrored = self._wrapped(n - z, n - z + 1)[0].flip(0, 1)
            planes[z - first] += torch.roll(mirrored, (1, 1), (0, 1)).conj()
        return planes

    def _wrapped(self, first: int, last: int) -> Tensor:
        """(last − first, n, n) stored planes with their halo wrapped around, rolled to fft order, complex."""
        n, h = self.period, HALO
        planes = self.values[first + h : last + h]
        rows = planes[:, h : h + n].clone()
        rows[:, :h] += planes[:, h + n :]
        rows[:, n - h :] += planes[:, :h]
        wrapped = rows[:, :, h : h + n].to(torch.complex64, copy=True)
        wrapped[:, :, :h] += rows[:, :, h + n :]
        wrapped[:, :, n - h :] += rows[:, :, :h]
        return torch.roll(wrapped, (-(n // 2), -(n // 2)), (1, 2))


def _samples(box_size: int) -> NDArray[np.int32]:
    """(m, 2) kx ≥ 0 and ky of a half plane's samples below Nyquist's radius, row by row."""
    reach = (box_size - 1) // 2
    ky, kx = np.meshgrid(np.arange(-reach, reach + 1), np.arange(reach + 1), indexing="ij")
    inside = 4 * (kx**2 + ky**2) < box_size**2
    return np.stack([kx[inside], ky[inside]], axis=1).astype(np.int32)


@triton.jit
def _place(x):
    """First grid point of the kernel about x, the row of the table, and the fraction of the way to the next row."""
    first = tl.ceil(x - _reach)
    p = (first - x + _reach) * _steps
    row = p.to(tl.int32)
    return first.to(tl.int32), row, p - row.to(tl.float32)


@triton.jit
def _weight(taps, row, f, tap):
    """Value of the window at one of its taps."""
    return tl.load(taps + row * 8 + tap) + f * tl.load(taps + row * 8 + 4 + tap)


@triton.jit
def _add_rows(points, along_x, weight, y0, y1, y2, y3, stride, inside):
    """Add the kernel's four rows in a plane, from (BLOCK, lanes) pointers to the first row and values."""
    tl.atomic_add(points, along_x * (weight * y0)[:, None], mask=inside[:, None], sem="relaxed")
    tl.atomic_add(points + stride, along_x * (weight * y1)[:, None], mask=inside[:, None], sem="relaxed")
    tl.atomic_add(points + 2 * stride, along_x * (weight * y2)[:, None], mask=inside[:, None], sem="relaxed")
    tl.atomic_add(points + 3 * stride, along_x * (weight * y3)[:, None], mask=inside[:, None], sem="relaxed")


@triton.jit
def _spread(grid, x, y, z, value, inside, taps, across, COMPONENTS: tl.constexpr):
    """Add the kernels of samples to a grid.

    x, y, z: (BLOCK,) in grid points from point 0; value: (BLOCK, 4 × COMPONENTS), the same for every tap.
    """
    lane = tl.arange(0, 4 * COMPONENTS)[None, :]
    column, of_x, fx = _place(x)
    row, of_y, fy = _place(y)
    plane, of_z, fz = _place(z)
    # Taps along x are neighbours in memory, so they are the lanes.
    along_x = value * _weight(taps, of_x[:, None], fx[:, None], lane // COMPONENTS)
    y0, y1 = _weight(taps, of_y, fy, 0), _weight(taps, of_y, fy, 1)
    y2, y3 = _weight(taps, of_y, fy, 2), _weight(taps, of_y, fy, 3)
    z0, z1 = _weight(taps, of_z, fz, 0), _weight(taps, of_z, fz, 1)
    z2, z3 = _weight(taps, of_z, fz, 2), _weight(taps, of_z, fz, 3)
    stride = across * COMPONENTS
    start = ((plane.to(tl.int64) * across + row) * across + column) * COMPONENTS
    points = grid + start[:, None] + lane
    one_plane = across.to(tl.int64) * stride
    _add_rows(points, along_x, z0, y0, y1, y2, y3, stride, inside)
    _add_rows(points + one_plane, along_x, z1, y0, y1, y2, y3, stride, inside)
    _add_rows(points + 2 * one_plane, along_x, z2, y0, y1, y2, y3, stride, inside)
    _add_rows(points + 3 * one_plane, along_x, z3, y0, y1, y2, y3, stride, inside)


@triton.jit
def _insert(
    grids, slices, frames, ends, sets, images, weights, samples, taps, scale, n_samples, box_size, planes, across,
    LISTED: tl.constexpr, COMPONENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Spread some samples of one slice: program (block of samples, addition). Complex values are pairs of floats.

    If additions are LISTED, each adds one of the images times a weight; otherwise addition i adds image i.
    """
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    addition = tl.program_id(1).to(tl.int64)
    image = addition
    if LISTED:
        image = tl.load(images + addition).to(tl.int64)
    there = number < n_samples
    kx = tl.load(samples + 2 * number, mask=there, other=0)
    ky = tl.load(samples + 2 * number + 1, mask=there, other=0)
    fx, fy = kx.to(tl.float32), ky.to(tl.float32)
    reach = (box_size - 1) // 2
    end = ends + 2 * (image * (2 * reach + 1) + ky + reach)
    inside = there & (tl.load(end) <= fx) & (fx <= tl.load(end + 1))

    frame = frames + 6 * image
    x = tl.load(frame) * scale * fx + tl.load(frame + 1) * scale * fy
    y = tl.load(frame + 2) * scale * fx + tl.load(frame + 3) * scale * fy
    z = tl.load(frame + 4) * scale * fx + tl.load(frame + 5) * scale * fy
    # Both k and −k are samples, except on the column kx = 0, which holds both itself.
    paired = kx > 0
    sign = tl.where(paired & (z < 0), -1.0, 1.0)
    x, y, z = x * sign, y * sign, z * sign
    inside = inside & (z > -_reach)  # otherwise no stored plane is touched

    component = tl.arange(0, 4 * COMPONENTS)[None, :] % COMPONENTS
    row = tl.where(ky < 0, ky + box_size, ky)
    address = ((image * box_size + row) * (box_size // 2 + 1) + kx) * COMPONENTS
    value = tl.load(slices + address[:, None] + component, mask=inside[:, None], other=0.0)
    value = tl.where(component == 1, sign[:, None], 1.0) * value  # the value at −k is the conjugate
    if LISTED:
        value = tl.load(weights + addition) * value
    centre = (across // 2).to(tl.float32)
    grid = grids + tl.load(sets + addition).to(tl.int64) * planes * across * across * COMPONENTS
    _spread(grid, centre + x, centre + y, z + _halo, value, inside, taps, across, COMPONENTS)
    mirrored = inside & paired & (z < _reach)
    if tl.sum(mirrored.to(tl.int32), axis=0) > 0:
        conjugate = tl.where(component == 1, -1.0, 1.0) * value
        _spread(grid, centre - x, centre - y, -z + _halo, conjugate, mirrored, taps, across, COMPONENTS)
