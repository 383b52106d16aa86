"""Grids of poses: directions spread evenly over the sphere, turns within the image, shifts.

A pose is a direction d, a turn ψ about it and a shift t. The frame of a direction is the rotation matrix of ψ = 0,
whose rows are the image's axes and d. Turned by ψ it is ``_about_z(ψ) @ frame``, which adds ψ to RELION's psi.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


def directions(number: int, turn: NDArray[np.float64], symmetry: NDArray[np.float64]) -> NDArray[np.float64]:
    """(≈ number, 3) unit vectors spread evenly over one asymmetric unit of the sphere.

    Args:
        number: the number that is wanted; with symmetry a few more or fewer are returned.
        turn: (3, 3) rotation of the grid before the asymmetric unit is cut out of it.
        symmetry: (m, 3, 3) operators of the point group.
    """
    total = number * len(symmetry)
    z = 1 - (2 * np.arange(total) + 1) / total
    angle = _GOLDEN_ANGLE * np.arange(total)
    radius = np.sqrt(1 - z * z)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1) @ turn.T
    return points[in_asymmetric_unit(points, symmetry)]


def in_asymmetric_unit(points: NDArray[np.float64], symmetry: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) whether unit vectors lie in the Dirichlet cell of a point in general position."""
    generic = np.array([0.269, 0.137, 0.953])
    generic /= np.linalg.norm(generic)
    overlaps = np.einsum("gij,nj,i->gn", symmetry, points, generic)
    return overlaps[0] >= overlaps.max(axis=0) - 1e-12


def frames(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3, 3) RELION matrices with ψ = 0 of directions (n, 3)."""
    rot, tilt = np.arctan2(points[:, 1], points[:, 0]), np.arccos(np.clip(points[:, 2], -1, 1))
    c, s, ct, st = np.cos(rot), np.sin(rot), np.cos(tilt), np.sin(tilt)
    zero = np.zeros_like(c)
    x, y, z = [ct * c, ct * s, -st], [-s, c, zero], [st * c, st * s, ct]
    return np.stack([np.stack(axis, axis=1) for axis in (x, y, z)], axis=1)


def turns(number: int) -> NDArray[np.float64]:
    """(number,) angles ψ in radians, spread evenly over the circle."""
    return 2 * np.pi * np.arange(number) / number


def turned(of_direction: NDArray[np.float64], psi: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3, 3) matrices of (n, 3, 3) frames turned by (n,) radians."""
    c, s = np.cos(psi), np.sin(psi)
    x = c[:, None] * of_direction[:, 0] + s[:, None] * of_direction[:, 1]
    y = c[:, None] * of_direction[:, 1] - s[:, None] * of_direction[:, 0]
    return np.stack([x, y, of_direction[:, 2]], axis=1)


def random_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """(3, 3) rotation drawn uniformly."""
    return np.asarray(Rotation.random(random_state=rng).as_matrix(), dtype=np.float64)


def families(fine: NDArray[np.float64], coarse: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """For every coarse direction, the fine directions that are nearest to it; each fine one is in one family."""
    parent = cKDTree(coarse).query(fine)[1]
    order = np.argsort(parent, kind="stable")
    return np.split(order, np.searchsorted(parent[order], np.arange(1, len(coarse))))


def number_of_directions(step_in_degrees: float, order: int) -> int:
    """Number of directions that cover the asymmetric unit of a group of this order at this spacing."""
    return max(12, round(4 * np.pi / np.deg2rad(step_in_degrees) ** 2 / order))


def shift_grid(reach: int, step: float) -> NDArray[np.float64]:
    """(T, 2) x, y: the centre and its neighbours; reach 1 gives the five of a cross, reach 2 all nine."""
    k = np.arange(-1, 2)
    y, x = (a.ravel() for a in np.meshgrid(k, k, indexing="ij"))
    near = np.abs(x) + np.abs(y) <= reach
    return step * np.stack([x[near], y[near]], axis=1).astype(np.float64)
