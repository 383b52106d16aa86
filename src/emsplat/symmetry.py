"""Point groups with the names and axes of RELION.

A group is the closure of two generators. Axes are those of RELION's ``SymList`` (and xmipp's before it): Cn about z; Dn
with a two-fold axis along x; O with its four-fold axes along x, y and z; I (= I2) in the crossing-222 setting, I1 is I2
turned by 90° about z, I3 has a five-fold axis along z, and I4 is I3 with its other axes mirrored.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError

KNOWN_GROUPS = "C1, C2, ... Cn; D1, D2, ... Dn; T; O; I (= I2), I1, I2, I3, I4"

_PHI = (1 + 5**0.5) / 2  # golden ratio
_SHORT, _LONG = (_PHI + 2) ** -0.5, _PHI * (_PHI + 2) ** -0.5  # 0.5257, 0.8507: a corner of the icosahedron

# (order of rotation, axis x y z), enough of them to generate the group
_GENERATORS: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, (2 / 3) ** 0.5, (1 / 3) ** 0.5))),
    "O": ((3, (1, 1, 1)), (4, (0, 0, 1))),
    "I1": ((2, (1, 0, 0)), (5, (_LONG, 0, -_SHORT))),
    "I2": ((2, (0, 0, 1)), (5, (_SHORT, 0, _LONG))),
    "I3": ((2, (-_SHORT, 0, _LONG)), (5, (0, 0, 1))),
    "I4": ((2, (_SHORT, 0, _LONG)), (5, (0, 0, 1))),
}


def symmetry_operators(name: str) -> NDArray[np.float64]:
    """(n, 3, 3) rotation matrices of a point group, acting on (x, y, z), the identity first.

    Raises:
        InputError: the name is not one of RELION's rotation groups.
    """
    group = name.strip().upper()
    cyclic = re.fullmatch(r"([CD])([1-9]\d{0,2})", group)
    if cyclic:
        turns = [_rotation((0, 0, 1), i / int(cyclic[2])) for i in range(int(cyclic[2]))]
        flips = [turn @ np.diag([1.0, -1.0, -1.0]) for turn in turns] if cyclic[1] == "D" else []
        return np.array(turns + flips)
    group = "I2" if group == "I" else group
    if group not in _GENERATORS:
        raise InputError(f"symmetry {name!r} is not a known point group; choose one of {KNOWN_GROUPS}")
    return _closure([_rotation(axis, 1 / order) for order, axis in _GENERATORS[group]])


def _rotation(axis: tuple[float, float, float], turns: float) -> NDArray[np.float64]:
    """(3, 3) rotation by a fraction of a turn about an axis of any length (Rodrigues' formula)."""
    x, y, z = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = 2 * np.pi * turns
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _closure(generators: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """All products of the generators; each new element is multiplied by each generator once."""
    elements = [np.eye(3)]
    for element in elements:  # the list grows during the loop
        for generator in generators:
            product = generator @ element
            if all(np.abs(product - known).max() > 1e-6 for known in elements):
                elements.append(product)
    return np.array(elements)
