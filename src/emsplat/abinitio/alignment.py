"""Alignment of two small, independently found maps of one particle by rotation, shift and hand.

Shells are whitened, so that none outweighs the others. An even grid of all rotations is tried with coarse shells; one
inverse FFT tries all shifts at each rotation. The best rotations are then refined with all shells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from emsplat.abinitio import grids
from emsplat.abinitio.volume import samples, transform_of
from emsplat.fourier import maps

_COARSE_RINGS = 6
_COARSE_STEP = 12.0  # degrees
_REFINED, _REFINED_TO_THE_END = 12, 2  # best rotations of each hand that are refined with coarse shells, then with all
_MOST_POINTS = 12_000  # number of Fourier voxels that determine a rotation and a shift well enough
_MIRROR = np.diag([1.0, 1.0, -1.0])  # negates z, which turns one hand into the other


@dataclass(frozen=True)
class Alignment:
    """How the second map lies in the first one's frame: ``x_first = rotation @ mirror(x_second) + shift``."""

    rotation: NDArray[np.float64]  # (3, 3)
    shift: NDArray[np.float64]  # (3,) x, y, z in voxels of the box that the maps span
    mirrored: bool  # whether the second map has the other hand
    correlation: float  # correlation of the whitened maps

    def poses(
        self, rotations: NDArray[np.float64], centres: NDArray[np.float64], scale: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Poses of images in the second map as poses in the first.

        Args:
            rotations: (n, 3, 3); centres: (n, 2) x, y in pixels; scale: pixels of the image per voxel of the maps.
        """
        if self.mirrored:
            # An image is x = A v. For the mirror image M v it is M A M (M v), except for the sign of the depth, which
            # no projection shows.
            rotations = _MIRROR @ rotations @ _MIRROR
        in_first = rotations @ self.rotation.T
        # x_first = R x + s gives A x = A Rᵀ (x_first − s), so the centre in the image moves by −A Rᵀ s.
        return in_first, centres - scale * (in_first @ self.shift)[:, :2]

    def applied(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """The second map, (N, N, N), in the frame of the first."""
        return moved(volume, self.rotation, self.shift, self.mirrored)


def align(first: NDArray[np.float32], second: NDArray[np.float32], n_rings: int) -> Alignment:
    """The rotation, shift and hand that bring the second map (N, N, N) onto the first, with shells up to `n_rings`."""
    best: Alignment | None = None
    for mirrored in (False, True):
        found = _best_of_hand(first, maps.mirrored(second) if mirrored else second, n_rings, mirrored)
        if best is None or found.correlation > best.correlation:
            best = found
    assert best is not None
    return best


def align_near(first: NDArray[np.float32], second: NDArray[np.float32], n_rings: int) -> Alignment:
    """The small rotation and shift that bring the second map onto the first, if both have the same hand."""
    return _refined(first, transform_of(second), np.eye(3), np.zeros(3), n_rings, mirrored=False)


def own_rotations(volume: NDArray[np.float32], n_rings: int, least: float = 0.9) -> NDArray[np.float64]:
    """(m, 3, 3) rotations about voxel N//2 that leave a map as it is, the identity first.

    Args:
        least: least correlation with the turned map at which the two count as the same.
    """
    coarse = Comparison.of(volume, min(n_rings, _COARSE_RINGS))
    source, grid = transform_of(volume), rotation_grid()
    turned = [coarse.correlation(source, rotation) for rotation in grid]
    found, tried = [np.eye(3)], [np.eye(3)]
    for i in np.argsort(turned)[::-1]:
        if turned[i] < 0.5:
            break
        if any(_near(grid[i], other, 3 * _COARSE_STEP) for other in tried):
            continue
        tried.append(grid[i])
        candidate = _refined(volume, source, grid[i], np.zeros(3), n_rings, mirrored=False)
        is_new = not any(_near(candidate.rotation, other, _COARSE_STEP) for other in found)
        if is_new and candidate.correlation >= least:
            found.append(candidate.rotation)
    return np.array(found)


def _near(a: NDArray[np.float64], b: NDArray[np.float64], degrees: float) -> bool:
    """Whether two rotations (3, 3) differ by less than an angle."""
    return bool(np.trace(a.T @ b) > 1 + 2 * np.cos(np.deg2rad(degrees)))


def moved(
    volume: NDArray[np.float32], rotation: NDArray[np.float64], shift: NDArray[np.float64], mirrored: bool = False
) -> NDArray[np.float32]:
    """(N, N, N) ``V(mirror(Rᵀ (x − s)))``, band-limited to the sphere of its last whole shell."""
    box_size = len(volume)
    points = _half_lattice(box_size, (box_size - 1) // 2)
    source = transform_of(maps.mirrored(volume) if mirrored else volume)
    values = samples(source, points, rotation) * np.exp(-2j * np.pi * (points @ shift) / box_size)
    spectrum = np.zeros((box_size,) * 3, np.complex64)
    _fill(spectrum, points, values)
    return scipy.fft.fftshift(scipy.fft.ifftn(spectrum).real).astype(np.float32)


def shell_correlations(first: NDArray[np.float32], second: NDArray[np.float32], n_rings: int) -> NDArray[np.float64]:
    """(R,) FSC of two (N, N, N) maps in shells 1 … R."""
    box_size = len(first)
    a, b = maps.half_spectrum(first), maps.half_spectrum(second)
    powers = maps.shell_correlation(a, a, box_size) * maps.shell_correlation(b, b, box_size)
    return (maps.shell_correlation(a, b, box_size) / np.sqrt(np.maximum(powers, 1e-300)))[1 : n_rings + 1]


def _best_of_hand(first: NDArray[np.float32], second: NDArray[np.float32], n_rings: int, mirrored: bool) -> Alignment:
    coarse = Comparison.of(first, min(n_rings, _COARSE_RINGS))
    source = transform_of(second)
    rotations = rotation_grid()
    small = 2 * coarse.rings + 2
    correlations, shifts = np.empty(len(rotations)), np.empty((len(rotations), 3))
    for part in np.array_split(np.arange(len(rotations)), -(-len(rotations) // 64)):
        cross = np.zeros((len(part), small, small, small), np.complex64)
        for spectrum, rotation in zip(cross, rotations[part], strict=True):
            _fill(spectrum, coarse.points, coarse.whitened(samples(source, coarse.points, rotation)) * coarse.against)
        over_shifts = scipy.fft.ifftn(cross, axes=(1, 2, 3)).real.reshape(len(part), -1)
        best = over_shifts.argmax(axis=1)
        correlations[part] = over_shifts[np.arange(len(part)), best]
        where = np.stack(np.unravel_index(best, (small,) * 3), axis=1)[:, ::-1]
        shifts[part] = -np.where(where > small // 2, where - small, where) * (len(first) / small)
    tried = [
        _refined(first, source, rotations[i], shifts[i], coarse.rings, mirrored)
        for i in np.argsort(correlations)[::-1][:_REFINED]
    ]
    tried.sort(key=lambda found: -found.correlation)
    last = [_refined(first, source, t.rotation, t.shift, n_rings, mirrored) for t in tried[:_REFINED_TO_THE_END]]
    return max(last, key=lambda found: found.correlation)


def _refined(
    first: NDArray[np.float32],
    source: NDArray[np.complex64],
    rotation: NDArray[np.float64],
    shift: NDArray[np.float64],
    n_rings: int,
    mirrored: bool,
) -> Alignment:
    best_rotation, best_shift, value = rotation, shift, -1.0
    for rings in sorted({min(n_rings, 2 * _COARSE_RINGS), n_rings}):
        comparison = Comparison.of(first, rings)
        turn_unit, shift_unit = np.deg2rad(3.0), 0.3

        def loss(x: NDArray[np.float64]) -> float:
            turned = Rotation.from_rotvec(x[:3] * turn_unit).as_matrix() @ best_rotation  # noqa: B023
            return -comparison.correlation(source, turned, best_shift + x[3:] * shift_unit)  # noqa: B023

        found = minimize(loss, np.zeros(6), method="Powell", options={"xtol": 0.02, "ftol": 1e-4, "maxfev": 400})
        best_rotation = Rotation.from_rotvec(found.x[:3] * turn_unit).as_matrix() @ best_rotation
        best_shift, value = best_shift + found.x[3:] * shift_unit, -float(found.fun)
    return Alignment(best_rotation, best_shift, mirrored, value)


@dataclass(frozen=True)
class Comparison:
    """A map's whitened Fourier voxels, with which those of another map are correlated."""

    box_size: int
    rings: int
    points: NDArray[np.float64]  # (n, 3) kx, ky, kz of voxels in one half of Fourier space
    shell: NDArray[np.int64]  # (n,) shell of each
    against: NDArray[np.complex64]  # (n,) complex conjugates of the whitened values

    @staticmethod
    def of(volume: NDArray[np.float32], rings: int) -> Comparison:
        """Compare with a map (N, N, N) on its shells up to `rings`, or on a random sample of their voxels."""
        points = _half_lattice(len(volume), rings)
        if len(points) > _MOST_POINTS:
            points = points[np.sort(np.random.default_rng(0).choice(len(points), _MOST_POINTS, replace=False))]
        shell = np.rint(np.linalg.norm(points, axis=1)).astype(int)
        empty = Comparison(len(volume), rings, points, shell, np.empty(0, np.complex64))
        return replace(empty, against=empty.whitened(samples(transform_of(volume), points, np.eye(3))).conj())

    def whitened(self, values: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """The values with equal power in all shells and a total power of 1."""
        power = np.bincount(self.shell, values.real**2 + values.imag**2, minlength=self.rings + 1)
        shown = power > 0
        factors = np.sqrt(1 / (np.where(shown, power, np.inf) * max(np.count_nonzero(shown), 1)))
        return values * factors.astype(np.float32)[self.shell]

    def correlation(
        self, source: NDArray[np.complex64], rotation: NDArray[np.float64], shift: NDArray[np.float64] | None = None
    ) -> float:
        """Correlation with a map that is turned (3, 3) and shifted (3,); `source` is its transform."""
        values = self.whitened(samples(source, self.points, rotation)) * self.against
        if shift is None:
            return float(values.real.sum())
        angle = (-2 * np.pi / self.box_size * (self.points @ shift)).astype(np.float32)
        return float((values.real * np.cos(angle) - values.imag * np.sin(angle)).sum())


def rotation_grid() -> NDArray[np.float64]:
    """(n, 3, 3) rotations, spread evenly over all of them."""
    points = grids.directions(grids.number_of_directions(_COARSE_STEP, 1), np.eye(3), np.eye(3)[None])
    psi = grids.turns(round(360 / _COARSE_STEP))
    return np.concatenate([grids.turned(grids.frames(points), np.full(len(points), angle)) for angle in psi])


def _half_lattice(box_size: int, rings: int) -> NDArray[np.float64]:
    """(n, 3) kx, ky, kz of the Fourier voxels with 0 < |k| ≤ rings, one of each pair of mirror images."""
    k = np.arange(-rings, rings + 1, dtype=np.float64)
    z, y, x = (a.ravel() for a in np.meshgrid(k, k, k, indexing="ij"))
    half = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    points = np.stack([x, y, z], axis=1)[half]
    return points[np.linalg.norm(points, axis=1) <= min(rings, (box_size - 1) // 2)]


def _fill(spectrum: NDArray[np.complex64], points: NDArray[np.float64], values: NDArray[np.complex64]) -> None:
    """Set Fourier voxels (N, N, N), in fft order, at points (n, 3) of one half, and their mirror images."""
    at = points.astype(int).T[::-1]
    spectrum[tuple(at % len(spectrum))] = values
    spectrum[tuple(-at % len(spectrum))] = values.conj()
