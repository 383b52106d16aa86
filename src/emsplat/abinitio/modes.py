"""Turns between the poses that two maps give the same images: one for all, several under a symmetry, or none.

The images of a particle whose symmetry was not imposed may be found on any symmetry mate. The turns then gather about
the operators of its group, although the group is unknown. Turns of meaningless poses gather nowhere. If a map is round
about an axis, turns spread along a circle instead, whose pieces look like modes but have no gaps between them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

_NEAR_IN_DEGREES = 15.0
_LEAST_SHARE = 0.01  # share of the images that makes a mode: twelve times as many as by chance
_AS_FREQUENT = 0.6  # of the share of the most frequent mode
_MOST_MODES = 60  # order of the icosahedral group
_IN_ONE_PLACE = 0.75  # share of the poses that gather anywhere, from which on they gather in one place
_SMEARED = 0.55  # `Modes.smeared` of a circle is at least 0.6, and that of mates at most 0.5 unless they are 30° apart


@dataclass(frozen=True)
class Modes:
    """The rotations about which turns gather."""

    rotations: NDArray[np.float64]  # (k, 3, 3) x_first = Q x_second beyond the alignment, the most frequent first
    shares: NDArray[np.float64]  # (k,) shares of the images
    smeared: float = 0.0  # images 15° to 30° from a frequent mode, over those within 15°: the median of such modes

    @property
    def main(self) -> float:
        """Share of the images in the most frequent mode."""
        return float(self.shares[0]) if len(self.shares) else 0.0

    @property
    def total(self) -> float:
        """Share of the images in any mode."""
        return float(self.shares.sum())

    @property
    def is_one_place(self) -> bool:
        """Whether most poses that gather anywhere do so in one place."""
        return self.main >= _IN_ONE_PLACE * self.total > 0

    @property
    def agreed(self) -> float:
        """Share of the images that have the same pose in both maps: in one place if most are there, or on any mate.

        Both halves can come to the same wrong map, in which the mates of a pseudo-symmetry are mixed up. Many images
        then turn from one of them to another, and those beside the first place must not count as the same pose.
        """
        return self.main if self.is_one_place else self.total

    @property
    def even(self) -> float:
        """Share of the images in modes that are nearly as frequent as the most frequent, as mates of a symmetry are.

        It is 0 if turns spread along a circle.
        """
        if self.is_circle:
            return 0.0
        return float(self.shares[self.shares > _AS_FREQUENT * self.main].sum())

    @property
    def is_circle(self) -> bool:
        """Whether turns spread along a circle, without gaps, so that their modes are no mates of a symmetry."""
        return len(self.shares) > 2 and self.smeared > _SMEARED

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
    found = Modes(np.array(rotations).reshape(-1, 3, 3)[order], np.array(shares)[order])
    return replace(found, smeared=_smeared(found, quaternions)) if shares else found


def _smeared(modes: Modes, quaternions: NDArray[np.float64]) -> float:
    """`Modes.smeared` for the turns (n, 4)."""
    frequent = modes.rotations[modes.shares > _AS_FREQUENT * modes.main]
    cosines = np.abs(Rotation.from_matrix(frequent).as_quat() @ quaternions.T)
    angles = np.rad2deg(2 * np.arccos(np.minimum(cosines, 1.0)))
    within = np.count_nonzero(angles < _NEAR_IN_DEGREES, axis=1)
    return float(np.median(np.count_nonzero(angles < 2 * _NEAR_IN_DEGREES, axis=1) / within - 1))
