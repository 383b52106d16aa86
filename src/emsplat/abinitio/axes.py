"""The axes of a point group in a map that was found without it, and the map in the axes of the group.

A search that imposes a symmetry from the first, random map on often puts the axes where the particle has none, and
stays there. Without the symmetry the map takes shape by itself, and then shows where its axes are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from emsplat.abinitio.alignment import Comparison, moved, rotation_grid
from emsplat.abinitio.volume import transform_of

_COARSE_RINGS = 6
_REFINED = 8  # number of frames that are refined
_APART = 20.0  # degrees: frames that are nearer to each other would be refined to the same
_TURN_UNIT, _SHIFT_UNIT = np.deg2rad(6.0), 0.5  # first steps of the refinement: radians and voxels


@dataclass(frozen=True)
class Frame:
    """Where the axes of a point group lie in a map: ``x_map = rotation @ x_group + centre``."""

    rotation: NDArray[np.float64]  # (3, 3)
    centre: NDArray[np.float64]  # (3,) x, y, z in voxels from voxel N//2
    correlation: float  # mean correlation of the whitened map with itself, turned by generators of the group

    def symmetrised(self, volume: NDArray[np.float32], symmetry: NDArray[np.float64]) -> NDArray[np.float32]:
        """The map (N, N, N) in the axes of the group, averaged over its operators (m, 3, 3)."""
        turned = moved(volume, self.rotation.T, -self.rotation.T @ self.centre)
        total = np.zeros(volume.shape, np.float64)
        for operator in symmetry:
            total += moved(turned, operator, np.zeros(3))
        return (total / len(symmetry)).astype(np.float32)


def frame_of(volume: NDArray[np.float32], symmetry: NDArray[np.float64], n_rings: int) -> Frame:
    """The frame in which a map (N, N, N) comes nearest to a point group (m, 3, 3), by its shells up to `n_rings`."""
    some, source = generators(symmetry), transform_of(volume)
    centre = _middle(volume)

    def likeness(comparison: Comparison, rotation: NDArray[np.float64], centre: NDArray[np.float64]) -> float:
        turns = rotation @ some @ rotation.T
        return float(np.mean([comparison.correlation(source, turn, centre - turn @ centre) for turn in turns]))

    coarse = Comparison.of(volume, min(n_rings, _COARSE_RINGS))
    frames = rotation_grid()
    likely = np.array([likeness(coarse, frame, centre) for frame in frames])
    tried: list[NDArray[np.float64]] = []
    for i in np.argsort(likely)[::-1]:
        if all(np.trace(frames[i].T @ other) < 1 + 2 * np.cos(np.deg2rad(_APART)) for other in tried):
            tried.append(frames[i])
        if len(tried) == _REFINED:
            break
    fine = Comparison.of(volume, n_rings)

    def refined(frame: NDArray[np.float64], comparison: Comparison, centre: NDArray[np.float64]) -> Frame:
        def turned(x: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(Rotation.from_rotvec(x[:3] * _TURN_UNIT).as_matrix() @ frame)

        found = minimize(
            lambda x: -likeness(comparison, turned(x), centre + x[3:] * _SHIFT_UNIT),
            np.zeros(6), method="Powell", options={"xtol": 0.02, "ftol": 1e-4, "maxfev": 300},
        )  # fmt: skip
        return Frame(turned(found.x), centre + found.x[3:] * _SHIFT_UNIT, -float(found.fun))

    best = max((refined(frame, coarse, centre) for frame in tried), key=lambda found: found.correlation)
    return refined(best.rotation, fine, best.centre)


def generators(symmetry: NDArray[np.float64]) -> NDArray[np.float64]:
    """(g, 3, 3) few operators of a point group (m, 3, 3) whose products are all of it."""
    angles = Rotation.from_matrix(symmetry).magnitude()
    chosen: list[NDArray[np.float64]] = []
    reached = np.eye(3)[None]
    for i in np.argsort(np.where(angles < 1e-6, np.inf, angles)):  # small turns first: they belong to the largest axes
        if len(reached) == len(symmetry):
            break
        if _position(symmetry[i], reached) is None:
            chosen.append(symmetry[i])
            reached = _closure(np.array(chosen))
    return np.array(chosen)


def _closure(operators: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m, 3, 3) all products of some operators."""
    reached = [np.eye(3)]
    for one in reached:  # grows while it is gone through
        for operator in operators:
            if _position(operator @ one, np.array(reached)) is None:
                reached.append(operator @ one)
    return np.array(reached)


def _position(operator: NDArray[np.float64], among: NDArray[np.float64]) -> int | None:
    """The place of an operator among others; None if it is not there."""
    same = np.flatnonzero(np.abs(among - operator).max(axis=(1, 2)) < 1e-6)
    return int(same[0]) if len(same) else None


def _middle(volume: NDArray[np.float32]) -> NDArray[np.float64]:
    """(3,) x, y, z of the centre of mass of the positive density, in voxels from voxel N//2; axes pass through it."""
    positive = np.maximum(volume, 0).astype(np.float64)
    axis = np.arange(len(volume)) - len(volume) // 2
    sums = (positive.sum(axis=(0, 1)), positive.sum(axis=(0, 2)), positive.sum(axis=(1, 2)))
    return np.array([axis @ of_axis for of_axis in sums]) / max(positive.sum(), 1e-30)
