"""Directions in Fourier space, divided into cells of equal measured weight, which vote once each.

Two directions that the symmetry maps onto each other hold the same noise, and directions that no view has reached hold
none at all. The cells divide the part of the half sphere that the symmetry leaves, and each of them holds as much of
what the views have measured as any other.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CELLS = 24
REGULARISATION = 0.1  # share of the mean weight that a direct inversion adds to every weight
_BINS = 24  # bins along an edge of the cube faces that directions are sorted into, 3° wide and less
_FACES = 3  # cube faces of the half sphere
_PATCH = 0.05  # half width of a slice as a sine, as `particles.coverage` has it
_VIEWS = 20_000  # most views that are used; if there are more, they are spread over the table
_GENERIC = np.array([0.36, 0.48, 0.8])  # a direction that no symmetry axis is near
_SPLITS = (2, 2, 2, 3)  # parts into which the weight is divided, one division after the other


def measured_density(
    rotations: NDArray[np.float64], symmetry: NDArray[np.float64], weights: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """(bins,) how many slices pass through each bin of directions, relative to the mean.

    Args:
        rotations: (N, 3, 3) matrices A of the views.
        symmetry: (m, 3, 3) operators that every view is repeated by.
        weights: (N,) of the views; by default, all count alike.
    """
    every = max(1, len(rotations) * len(symmetry) // _VIEWS)
    views = np.einsum("ni,mij->nmj", rotations[::every, 2], symmetry).reshape(-1, 3).astype(np.float32)
    counts = np.ones(len(rotations)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = np.repeat(counts[::every], len(symmetry)).astype(np.float32)
    centres = _bin_centres().astype(np.float32)
    density = np.empty(len(centres))
    for first in range(0, len(centres), 100):
        block = slice(first, first + 100)
        density[block] = (np.abs(centres[block] @ views.T) < _PATCH) @ shares
    return density / max(float(density.mean()), 1e-12)


def cells_of(
    box_size: int, symmetry: NDArray[np.float64] | None = None, density: NDArray[np.float64] | None = None
) -> NDArray[np.int8]:
    """(D, D, D//2) cell, 0 … 23, of every voxel of a half spectrum without its plane kx = 0.

    Args:
        symmetry: (m, 3, 3) operators; mates share a cell.
        density: (bins,) from `measured_density`; without it, directions count alike.
    """
    key = None if symmetry is None else symmetry.tobytes()
    of_bin = _cells_of_bins(key, None if density is None else density.tobytes())
    return of_bin[_bin_of_voxel(box_size)]


def density_at(box_size: int, density: NDArray[np.float64]) -> NDArray[np.float32]:
    """(D, D, D//2) the density of `measured_density` at every voxel of a half spectrum without its plane kx = 0."""
    return density.astype(np.float32)[_bin_of_voxel(box_size)]


def _bin_of_voxel(box_size: int) -> NDArray[np.int16]:
    """(D, D, D//2) the bin of every voxel of a half spectrum without its plane kx = 0."""
    k = (np.fft.fftfreq(box_size) * box_size).astype(np.float32)
    z, y, x = np.broadcast_arrays(k[:, None, None], k[:, None], np.arange(1, box_size // 2 + 1, dtype=np.float32))
    return bins_of(x, y, z)


def bins_of(x: NDArray, y: NDArray, z: NDArray) -> NDArray[np.int16]:
    """(...) the bin of each direction, (...) x, y, z of any length but 0; a direction and its opposite share one."""
    size = np.stack([np.abs(x), np.abs(y), np.abs(z)])
    face = size.argmax(axis=0).astype(np.int16)
    of_face = ((x, y, z), (y, z, x), (z, x, y))  # the axis the face lies across, then the two within it
    number = np.zeros(face.shape, dtype=np.int16)
    for axis, (across, first, second) in enumerate(of_face):
        here = face == axis
        i, j = (
            np.clip((v[here] / across[here] + 1) * (_BINS / 2), 0, _BINS - 1).astype(np.int16) for v in (first, second)
        )
        number[here] = axis * _BINS**2 + i * _BINS + j
    return number


@lru_cache(maxsize=1)
def _bin_centres() -> NDArray[np.float64]:
    """(bins, 3) unit vectors x, y, z."""
    t = (np.arange(_BINS) + 0.5) * (2 / _BINS) - 1
    first, second = np.meshgrid(t, t, indexing="ij")
    across = np.ones_like(first)
    faces = ((across, first, second), (second, across, first), (first, second, across))
    centres = np.stack([np.stack(face, axis=-1).reshape(-1, 3) for face in faces]).reshape(-1, 3)
    return centres / np.linalg.norm(centres, axis=1, keepdims=True)


@lru_cache(maxsize=8)
def _cells_of_bins(symmetry: bytes | None, density: bytes | None) -> NDArray[np.int8]:
    """(bins,) the cell of every bin."""
    centres = _bin_centres()
    solid_angle = np.abs(centres).max(axis=1) ** 3
    measured = np.ones(len(centres)) if density is None else np.frombuffer(density)
    operators = np.eye(3)[None] if symmetry is None else np.frombuffer(symmetry).reshape(-1, 3, 3)
    mates = np.einsum("mij,nj->nmi", operators, centres)
    mates = np.concatenate([mates, -mates], axis=1)
    chosen = mates[np.arange(len(mates)), (mates @ _GENERIC).argmax(axis=1)]  # the mate in one and the same domain
    across = np.linalg.svd(_GENERIC[None] / np.linalg.norm(_GENERIC))[2][1:]
    # A vote is a product of two signals, each of which is weighted by what was measured.
    weight = solid_angle * np.square(measured)
    cells = np.zeros(len(centres), dtype=np.int8)
    _divide(chosen @ across.T, weight, np.arange(len(centres)), _SPLITS, cells)
    return cells


def _divide(
    points: NDArray[np.float64],
    weight: NDArray[np.float64],
    members: NDArray[np.intp],
    splits: tuple[int, ...],
    cells: NDArray[np.int8],
    first: int = 0,
) -> None:
    """Numbers cells of equal weight, made by cuts across the longer extent of each part."""
    if not splits:
        cells[members] = first
        return
    here = points[members]
    total = max(float(weight[members].sum()), 1e-12)
    mean = (weight[members, None] * here).sum(axis=0) / total
    spread = (weight[members, None] * (here - mean) ** 2).sum(axis=0)
    order = members[np.argsort(here[:, spread.argmax()], kind="stable")]
    reached = np.cumsum(weight[order]) / total
    part = np.minimum((reached - 1e-9) * splits[0], splits[0] - 1).astype(int)
    each = int(np.prod(splits[1:], dtype=int))
    for number in range(splits[0]):
        _divide(points, weight, order[part == number], splits[1:], cells, first + number * each)
