"""How evenly the views cover Fourier space.

The slice of a view v holds the directions u across it. Let S(u) be the number of slices through a small patch about u,
divided by its mean. The noise of the map is proportional to 1/S(u), so that the mean noise of n uneven views is that of
n / mean(1/S) even views; 1 / mean(1/S) is the `efficiency`. Source: Baldwin & Lyumkis (2020), Prog. Biophys. Mol. Biol.
150, 160 (their SCF).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PATCH = 0.05  # half width of a slice as a sine: one voxel at shell 10
_DIRECTIONS, _VIEWS = 1500, 20_000  # largest numbers that are used; if there are more views, some are drawn at random
_EMPTY, _FLOOR = 0.1, 0.02  # S of a direction that counts as empty; S is not taken as less than the floor
CAP_IN_DEGREES = 30.0


@dataclass(frozen=True)
class Coverage:
    """The coverage of Fourier space by the views."""

    efficiency: float  # 1 for even views
    empty: float  # share of the directions in Fourier space with less than a tenth of the mean
    gap_in_degrees: float  # largest angle from a direction to the nearest view, where v and −v are the same view
    densest_cap: float  # share of the views within 30° of the preferred direction
    preferred: tuple[float, float]  # rot and tilt of that direction in degrees


def measure_coverage(rotations: NDArray[np.float64], symmetry: NDArray[np.float64], seed: int) -> Coverage:
    """Coverage by views with the matrices A, (n, 3, 3), and by all symmetry mates, with operators (m, 3, 3)."""
    affordable = max(1, _VIEWS // len(symmetry))
    if len(rotations) > affordable:
        rotations = rotations[np.random.default_rng(seed).choice(len(rotations), affordable, replace=False)]
    views = _views(rotations, symmetry)
    directions = _half_sphere(_DIRECTIONS)
    sampling = np.empty(len(directions))
    nearest, in_cap = np.empty(len(directions)), np.empty(len(directions))
    for first in range(0, len(directions), 100):
        block = slice(first, first + 100)
        cosine = np.abs(directions[block].astype(np.float32) @ views.T)
        sampling[block] = np.mean(cosine < _PATCH, axis=1)
        nearest[block] = cosine.max(axis=1)
        in_cap[block] = np.mean(cosine > np.cos(np.deg2rad(CAP_IN_DEGREES)), axis=1)
    relative = sampling / max(sampling.mean(), 1e-12)
    x, y, z = directions[np.argmax(in_cap)]
    return Coverage(
        efficiency=float(1 / np.mean(1 / np.maximum(relative, _FLOOR))),
        empty=float(np.mean(relative < _EMPTY)),
        gap_in_degrees=float(np.rad2deg(np.arccos(np.clip(nearest.min(), 0, 1)))),
        densest_cap=float(in_cap.max()),
        preferred=(float(np.rad2deg(np.arctan2(y, x))), float(np.rad2deg(np.arccos(z)))),
    )


def _views(rotations: NDArray[np.float64], symmetry: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n m, 3) lines of sight in the volume's frame: the third rows of A S."""
    return np.einsum("ni,mij->nmj", rotations[:, 2], symmetry).reshape(-1, 3).astype(np.float32)


def _half_sphere(n: int) -> NDArray[np.float64]:
    """(n, 3) unit vectors spread evenly over the half sphere z > 0, on a spiral."""
    i = np.arange(n) + 0.5
    z = 1 - i / n
    longitude = np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(longitude), radius * np.sin(longitude), z], axis=1)
