"""Small maps in Fourier space: their polar slices, the insertion of slices, and the map that solves for them.

A map has N³ voxels and the period of the particle's box, so that Fourier voxels are those of the images. Slices are
read from, and inserted into, a grid of twice the sampling by trilinear interpolation, whose transform is divided out.
With several classes, maps (K, N, N, N) and sums have an axis of classes first, and slices of classes follow each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.abinitio.polar import PolarGrid

_OVERSAMPLING = 2


@dataclass
class SliceSums:
    """b and T of inserted slices on the oversampled grid, with frequencies in fft order."""

    back_projection: NDArray[np.complex64]  # (2N, 2N, 2N) [kz, ky, kx], or (K, 2N, 2N, 2N)
    weight: NDArray[np.float32]  # the same shape

    @staticmethod
    def empty(box_size: int, n_classes: int | None = None) -> SliceSums:
        """No slices. Args: n_classes: K; None: without an axis of classes."""
        shape = (*(() if n_classes is None else (n_classes,)), *(_OVERSAMPLING * box_size,) * 3)
        return SliceSums(np.zeros(shape, np.complex64), np.zeros(shape, np.float32))

    @staticmethod
    def like(map_: NDArray[np.float32]) -> SliceSums:
        """No slices, for a map or for maps of this shape."""
        return SliceSums.empty(map_.shape[-1], len(map_) if map_.ndim == 4 else None)

    def classes(self) -> list[SliceSums]:
        """Views of the sums of every class, without its axis."""
        shape = self.weight.shape[-3:]
        both = self.back_projection.reshape(-1, *shape), self.weight.reshape(-1, *shape)
        return [SliceSums(b, w) for b, w in zip(*both, strict=True)]

    def fade(self, memory: float) -> None:
        """Reduce the weight of the slices that are already there."""
        self.back_projection *= np.float32(memory)
        self.weight *= np.float32(memory)


def map_box(grid: PolarGrid) -> int:
    """N of the map from which slices with these rings are taken."""
    return 2 * (grid.n_rings + 2)


def transform_of(volume: NDArray[np.float32]) -> NDArray[np.complex64]:
    """(2N, 2N, 2N) transform of a map (N, N, N) about voxel N//2, ready for trilinear interpolation."""
    box_size = len(volume)
    n = _OVERSAMPLING * box_size
    padded = np.zeros((n, n, n), np.float32)
    place = (np.arange(box_size) - box_size // 2) % n
    padded[np.ix_(place, place, place)] = volume / _kernel_transform(box_size)
    return scipy.fft.fftn(padded)


def slices(volume: NDArray[np.float32], grid: PolarGrid, frames: NDArray[np.float64]) -> NDArray[np.complex64]:
    """(d, R, Q) samples of the central slices of a map (N, N, N), origin at voxel N//2, in (d, 3, 3) frames.

    Slices of K maps are (K·d, R, Q).
    """
    if volume.ndim == 4:
        return np.concatenate([slices(of_class, grid, frames) for of_class in volume])
    of_map = transform_of(volume)
    out = np.empty((len(frames), grid.n_rings, grid.n_angles), np.complex64)
    points = grid.points.reshape(-1, 2) * _OVERSAMPLING
    _gather(of_map.reshape(-1), len(of_map), points, frames, out.reshape(len(frames), -1))
    return out


def samples(
    of_map: NDArray[np.complex64], points: NDArray[np.float64], rotation: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """(n,) values of a map at points (n, 3) @ rotation (3, 3) in units of 1/N, from what `transform_of` gives."""
    out = np.empty(len(points), np.complex64)
    _sample(of_map.reshape(-1), len(of_map), points, rotation, float(_OVERSAMPLING), out)
    return out


def insert(
    sums: SliceSums,
    back_projection: NDArray[np.complex64],
    weight: NDArray[np.float32],
    grid: PolarGrid,
    frames: NDArray[np.float64],
    symmetry: NDArray[np.float64],
) -> None:
    """Add slices in all symmetry mates of a group.

    Args:
        back_projection: (d, R, Q) Σ p I of each direction; weight: (d, R) Σ p c²; frames: (d, 3, 3). With K
            classes, the first two are (K·d, …).
    """
    if sums.weight.ndim == 4:
        n = len(sums.weight)
        parts = zip(sums.classes(), np.split(back_projection, n), np.split(weight, n), strict=True)
        for of_class, b, w in parts:
            insert(of_class, b, w, grid, frames, symmetry)
        return
    per_sample = (np.pi * grid.radii / grid.n_angles).astype(np.float32)  # 2πr Fourier pixels on 2Q angles
    values = (back_projection * per_sample[:, None]).reshape(len(frames), -1)
    weights = np.repeat(weight * per_sample, grid.n_angles, axis=1)
    points = grid.points.reshape(-1, 2) * _OVERSAMPLING
    n = len(sums.weight)
    added = np.zeros((n**3, 3), np.float32)
    for operator in symmetry:
        _spread(added, n, points, frames @ operator, values, weights)
    _add_with_mirror_image(sums.back_projection, sums.weight, added.reshape(n, n, n, 3))


def solve(sums: SliceSums, signal: NDArray[np.float64], diameter: float, scale: float = 1.0) -> NDArray[np.float32]:
    """(N, N, N) map ``b / (T + 1/S)`` within a soft sphere.

    Args:
        signal: (R,) S, rings from 1; beyond them the map is empty.
        diameter: diameter of the sphere, as a share of the box.
        scale: factor on S.
    """
    if sums.weight.ndim == 4:
        return np.stack([solve(of_class, signal, diameter, scale) for of_class in sums.classes()])
    n = len(sums.weight)
    box_size = n // _OVERSAMPLING
    radius = _radii(n) / _OVERSAMPLING
    rings = np.arange(1, len(signal) + 1)
    inverse = 1 / (scale * np.interp(radius, rings, signal)).astype(np.float32)
    inside = (radius <= len(signal) + 0.5) & (radius > 0.5)
    density = np.float32(_OVERSAMPLING**3)  # 2³ grid points make one Fourier voxel
    spectrum = np.where(inside, density * sums.back_projection / (density * sums.weight + inverse), 0)
    padded = scipy.fft.ifftn(spectrum.astype(np.complex64)).real
    place = (np.arange(box_size) - box_size // 2) % n
    volume = padded[np.ix_(place, place, place)] / _kernel_transform(box_size)
    return (volume * sphere(box_size, diameter)).astype(np.float32)


def unregularised(sums: SliceSums, n_rings: int) -> NDArray[np.float32]:
    """(N, N, N) ``b / (T + 0.1 × shell mean of T)``, the direct inversion without any prior."""
    if sums.weight.ndim == 4:
        return np.stack([unregularised(of_class, n_rings) for of_class in sums.classes()])
    n = len(sums.weight)
    box_size, radius = n // _OVERSAMPLING, _radii(n) / _OVERSAMPLING
    shell = np.rint(radius).astype(int)
    mean = np.bincount(shell.ravel(), sums.weight.ravel()) / np.maximum(np.bincount(shell.ravel()), 1)
    weight = sums.weight + np.float32(0.1) * mean[shell].astype(np.float32)
    inside = (radius <= n_rings + 0.5) & (radius > 0.5) & (weight > 0)
    spectrum = np.divide(sums.back_projection, weight, out=np.zeros_like(sums.back_projection), where=inside)
    padded = scipy.fft.ifftn(spectrum).real
    place = (np.arange(box_size) - box_size // 2) % n
    return (padded[np.ix_(place, place, place)] / _kernel_transform(box_size)).astype(np.float32)


def shell_powers(volume: NDArray[np.float32], n_rings: int) -> NDArray[np.float64]:
    """(R,) mean |V̂|² in shells 1 … R; of several maps, their mean."""
    if volume.ndim == 4:
        return np.asarray(np.mean([shell_powers(of_class, n_rings) for of_class in volume], axis=0))
    spectrum = scipy.fft.fftn(volume)
    shell = np.rint(_radii(len(volume))).astype(int).ravel()
    power = (spectrum.real**2 + spectrum.imag**2).ravel()
    return (np.bincount(shell, power) / np.bincount(shell))[1 : n_rings + 1]


def sphere(box_size: int, diameter: float) -> NDArray[np.float32]:
    """(N, N, N) soft sphere of a diameter given as a share of the box."""
    axis = np.arange(box_size) - box_size // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    edge = max(1.5, 0.06 * box_size)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip((radius - diameter * box_size / 2) / edge, 0, 1))).astype(np.float32)


def _radii(n: int) -> NDArray[np.float32]:
    k = np.fft.fftfreq(n, 1 / n).astype(np.float32)
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)


def _kernel_transform(box_size: int) -> NDArray[np.float32]:
    """(N, N, N) transform of the trilinear kernel in real space."""
    axis = np.sinc((np.arange(box_size) - box_size // 2) / (_OVERSAMPLING * box_size)) ** 2
    return (axis[:, None, None] * axis[:, None] * axis).astype(np.float32)


# Frequencies lie within half of the grid's edge on either side, so that one comparison wraps an index. Places are
# unsigned, because for signed ones numba would look at every index for a negative value.


@numba.njit(inline="always")
def _wrapped(i, n):
    """Places of two neighbouring frequencies, the first of which may be negative, on a periodic axis of n points."""
    first = i + n if i < 0 else i
    second = first + 1 if first + 1 < n else 0
    return np.uint64(first), np.uint64(second)


@numba.njit(inline="always")
def _trilinear(flat, n, x, y, z):
    """The value between the eight neighbours of a frequency, on a periodic grid of edge n that is given flat."""
    edge = np.uint64(n)
    bx, by, bz = np.floor(x), np.floor(y), np.floor(z)
    fx, fy, fz = np.float32(x - bx), np.float32(y - by), np.float32(z - bz)
    x0, x1 = _wrapped(int(bx), n)
    ys, zs = _wrapped(int(by), n), _wrapped(int(bz), n)
    total = np.complex64(0)
    for dz in range(2):
        wz = fz if dz else np.float32(1) - fz
        plane = (zs[1] if dz else zs[0]) * edge
        for dy in range(2):
            w = wz * (fy if dy else np.float32(1) - fy)
            row = (plane + (ys[1] if dy else ys[0])) * edge
            total += w * ((np.float32(1) - fx) * flat[row + x0] + fx * flat[row + x1])
    return total


@numba.njit(cache=True, parallel=True, nogil=True, error_model="numpy")
def _gather(flat, n, points, frames, out):
    for d in numba.prange(len(frames)):
        f = frames[d]
        for p in range(len(points)):
            kx, ky = points[p, 0], points[p, 1]
            x = f[0, 0] * kx + f[1, 0] * ky
            y = f[0, 1] * kx + f[1, 1] * ky
            z = f[0, 2] * kx + f[1, 2] * ky
            out[d, p] = _trilinear(flat, n, x, y, z)


@numba.njit(cache=True, error_model="numpy")
def _sample(flat, n, points, rotation, factor, out):
    for p in range(len(points)):
        kx, ky, kz = factor * points[p, 0], factor * points[p, 1], factor * points[p, 2]
        x = kx * rotation[0, 0] + ky * rotation[1, 0] + kz * rotation[2, 0]
        y = kx * rotation[0, 1] + ky * rotation[1, 1] + kz * rotation[2, 1]
        z = kx * rotation[0, 2] + ky * rotation[1, 2] + kz * rotation[2, 2]
        out[p] = _trilinear(flat, n, x, y, z)


@numba.njit(cache=True, error_model="numpy")
def _spread(added, n, points, frames, values, weights):
    edge = np.uint64(n)
    for d in range(len(frames)):
        f = frames[d]
        for p in range(len(points)):
            kx, ky = points[p, 0], points[p, 1]
            real, imaginary, weight = values[d, p].real, values[d, p].imag, weights[d, p]
            x = f[0, 0] * kx + f[1, 0] * ky
            y = f[0, 1] * kx + f[1, 1] * ky
            z = f[0, 2] * kx + f[1, 2] * ky
            bx, by, bz = np.floor(x), np.floor(y), np.floor(z)
            fx, fy, fz = np.float32(x - bx), np.float32(y - by), np.float32(z - bz)
            xs, ys, zs = _wrapped(int(bx), n), _wrapped(int(by), n), _wrapped(int(bz), n)
            for dz in range(2):
                wz = fz if dz else np.float32(1) - fz
                plane = (zs[1] if dz else zs[0]) * edge
                for dy in range(2):
                    wzy = wz * (fy if dy else np.float32(1) - fy)
                    row = (plane + (ys[1] if dy else ys[0])) * edge
                    for dx in range(2):
                        w = wzy * (fx if dx else np.float32(1) - fx)
                        at = row + (xs[1] if dx else xs[0])
                        added[at, 0] += w * real
                        added[at, 1] += w * imaginary
                        added[at, 2] += w * weight


@numba.njit(cache=True, parallel=True, nogil=True, error_model="numpy")
def _add_with_mirror_image(back_projection, weight, added):
    """Add samples, each of which stands also for its mirror image, whose value is the complex conjugate."""
    n = len(weight)
    for z in numba.prange(n):
        mirrored_z = n - z if z else 0
        for y in range(n):
            mirrored_y = n - y if y else 0
            for x in range(n):
                here, there = added[z, y, x], added[mirrored_z, mirrored_y, n - x if x else 0]
                back_projection[z, y, x] += np.complex64(complex(here[0] + there[0], here[1] - there[1]))
                weight[z, y, x] += here[2] + there[2]
