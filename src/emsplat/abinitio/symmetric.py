"""Alignments under an imposed symmetry, which take axes to axes and shift only where the group leaves freedom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.abinitio.alignment import Alignment


def onto_axes(alignment: Alignment, symmetry: NDArray[np.float64]) -> Alignment:
    """The nearest alignment that takes every axis of a point group (m, 3, 3) to an axis of the same order."""
    if len(symmetry) == 1:
        return alignment
    axes, orders = _axes(symmetry)
    images = axes @ alignment.rotation.T
    overlaps = np.where(orders[:, None] == orders, np.abs(images @ axes.T), -1.0)
    partner = overlaps.argmax(axis=1)
    sign = np.sign(np.einsum("ni,ni->n", images, axes[partner]))
    targets = axes[partner] * sign[:, None]
    if len(axes) == 1:
        correction = _shortest_turn(images[0], targets[0])
    else:
        correction = Rotation.align_vectors(targets, images)[0].as_matrix()
    free = symmetry.mean(axis=0)  # projects onto the vectors that all operators leave in place
    return replace(alignment, rotation=correction @ alignment.rotation, shift=free @ alignment.shift)


def _axes(symmetry: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(k, 3) unit axes, one of each pair of opposite ones, and (k,) their orders."""
    axes: list[NDArray[np.float64]] = []
    orders: list[int] = []
    for vector in Rotation.from_matrix(symmetry[1:]).as_rotvec():
        order = round(2 * np.pi / np.linalg.norm(vector))
        axis = vector / np.linalg.norm(vector)
        known = next((i for i, other in enumerate(axes) if abs(axis @ other) > 1 - 1e-6), None)
        if known is None:
            axes.append(axis)
            orders.append(order)
        else:
            orders[known] = max(orders[known], order)
    return np.array(axes), np.array(orders)


def _shortest_turn(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) rotation that takes one unit vector to another by the shortest way."""
    axis, cosine = np.cross(start, end), float(np.clip(start @ end, -1, 1))
    length = np.linalg.norm(axis)
    return np.eye(3) if length < 1e-9 else Rotation.from_rotvec(axis / length * np.arccos(cosine)).as_matrix()
