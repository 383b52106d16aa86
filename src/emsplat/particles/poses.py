"""Poses: how the particle of each image is turned, and where in the image it lies.

All computation works with them. Euler angles and RELION's origins, which are the shifts that centre an image, stay in
the table as its file has them; only the reading and writing of files uses them directly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.conventions import euler_angles, rotation_matrices


@dataclass(frozen=True)
class Poses:
    """Poses of n images."""

    rotations: NDArray[np.float64]  # (n, 3, 3) A, ``x_image = A x_volume``
    shifts: NDArray[np.float64]  # (n, 2) x, y in Å: from the image's centre (pixel D//2) to the particle's

    def __post_init__(self) -> None:
        n = len(self.rotations)
        if self.rotations.shape != (n, 3, 3) or self.shifts.shape != (n, 2):
            raise ValueError(
                f"rotations {self.rotations.shape} and shifts {self.shifts.shape} must be (n, 3, 3) and (n, 2)"
            )

    def __len__(self) -> int:
        return len(self.rotations)

    @staticmethod
    def from_relion(euler_angles_in_degrees: NDArray, origins_in_angstroms: NDArray) -> Poses:
        """Poses from (n, 3) rot, tilt, psi and (n, 2) origins x, y."""
        return Poses(rotation_matrices(euler_angles_in_degrees), 0.0 - np.asarray(origins_in_angstroms, np.float64))

    def to_relion(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n, 3) rot, tilt, psi in degrees and (n, 2) origins x, y in Å."""
        return euler_angles(self.rotations), 0.0 - self.shifts

    def select(self, rows: NDArray) -> Poses:
        """The poses of these rows (indices or a mask), in that order."""
        return Poses(self.rotations[rows], self.shifts[rows])

    def changed(self, turns: NDArray[np.float64], moves: NDArray[np.float64]) -> Poses:
        """The poses of particles that are turned about the image's axes and moved within the image.

        Args:
            turns: (n, 3) rotation vectors in radians, right-handed, along the image's x, y and z.
            moves: (n, 2) x, y in Å.
        """
        from scipy.spatial.transform import Rotation  # slow to load; reading a table should not wait for it

        return Poses(Rotation.from_rotvec(turns).as_matrix() @ self.rotations, self.shifts + moves)
