"""Turns between the poses that two maps give the same images: one for all, several under a symmetry, or none.

The images of a particle whose symmetry was not imposed may be found on any symmetry mate. The turns then gather about
the operators of its group, although the group is unknown. Turns of meaningless poses gather nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

_NEAR_IN_DEGREES = 15.0
_LEAST_SHARE = 0.01  # share of the images that makes a mode: twelve times as many as by chance
_AS_FREQUENT = 0.6  # of the share of the most frequent mode
_MOST_MODES = 60  # order of the icosahedral group


@dataclass(frozen=True)
class Modes:
    """The rotations about which turns gather."""

    rotations: NDArray[np.float64]  # (k, 3, 3) x_first = Q x_second beyond the alignment, the most frequent first
    shares: NDArray[np.float64]  # (k,) shares of the images

    @property
    def main(self) -> float:
        """Share of the images in the most frequent mode."""
        return float(self.shares[0]) if len(self.shares) else 0.0

    @property
    def total(self) -> float:
        """Share of the images in any mode."""
        return float(self.shares.sum())

    @property
    def even(self) -> float:
        """Share of the images in modes that are nearly as frequent as the most frequent, as mates of a symmetry are."""
        return float(self.shares[self.shares > _AS_FREQUENT * self.main].sum())

    @property
    def number(self) -> int:
        """Number of modes with at least a tenth of the share of the most frequent one."""
        return int(np.count_nonzero(self.shares > 0.1 * self.main)) if len(self.shares) else 0


def modes_of(in_first: NDArray[np.float64], in_second: NDArray[np.float64], symmetry: NDArray[np.float64]) -> Modes:
    """Modes of the turns Q between poses (n, 3, 3), ``in_first = in_second Qᵀ``, modulo the operators of a group."""
    turns = np.swapaxes(in_first, 1, 2) @ in_second
    if len(symmetry) > 1:  # the smallest of the equivalent turns is taken
        equivalent = np.einsum("gij,njk->gnik", symmetry, turns)
        smallest = np.einsum("gnii->gn", equivalent).argmax(axis=0)
        turns = equivalent[smallest, np.arange(len(turns))]
    quaternions = Rotation.from_matrix(turns).as_quat()
    n = len(quaternions)
    radius = 2 * np.sin(np.deg2rad(_NEAR_IN_DEGREES) / 4)  # chord of half the angle
    tree = cKDTree(np.concatenate([quaternions, -quaternions]))
    near = [np.unique(np.array(found) % n) for found in tree.query_ball_point(quaternions, radius)]
    left = np.ones(n, dtype=bool)
    rotations: list[NDArray[np.float64]] = []
    shares: list[float] = []
    candidates = np.arange(n)[:: max(1, n // 1500)]
    while len(shares) < _MOST_MODES:
        counts = np.array([np.count_nonzero(left[near[i]]) for i in candidates])
        best = candidates[counts.argmax()]
        members = near[best][left[near[best]]]
        if len(members) < max(3, _LEAST_SHARE * n):
            break
        rotations.append(turns[best])
        shares.append(len(members) / n)
        left[members] = False
    order = np.argsort(shares)[::-1]
    return Modes(np.array(rotations).reshape(-1, 3, 3)[order], np.array(shares)[order])
