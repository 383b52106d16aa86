"""Point groups with the names of RELION, and its axes or those of other programs.

A group is the closure of two generators. Axes are those of RELION's ``SymList`` (and xmipp's before it): Cn about z; Dn
with a two-fold axis along x; T with a three-fold axis along z; O with its four-fold axes along x, y and z; I (= I2) in
the crossing-222 setting, I1 is I2 turned by 90° about z, I3 has a five-fold axis along z, and I4 is I3 with its other
axes mirrored. T222 has its two-fold axes along x, y and z (Heymann, Chagoyen & Belnap 2005, J. Struct. Biol. 151, 196).

Programs agree on names but not on axes, so a name may say more: ``D3@90`` is D3 turned by 90° about z, with a two-fold
axis along y; ``C4@x`` has its main axis along x.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError

KNOWN_GROUPS = (
    "C1, C2, ... Cn; D1, D2, ... Dn; T, T222; O; I (= I2), I1, I2, I3, I4; each with @x, @y or @degrees for other axes"
)

_PHI = (1 + 5**0.5) / 2  # golden ratio
_SHORT, _LONG = (_PHI + 2) ** -0.5, _PHI * (_PHI + 2) ** -0.5  # 0.5257, 0.8507: a corner of the icosahedron

# (order of rotation, axis x y z), enough of them to generate the group
_GENERATORS: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, (2 / 3) ** 0.5, (1 / 3) ** 0.5))),
    "T222": ((3, (1, 1, 1)), (2, (0, 0, 1))),
    "O": ((3, (1, 1, 1)), (4, (0, 0, 1))),
    "I1": ((2, (1, 0, 0)), (5, (_LONG, 0, -_SHORT))),
    "I2": ((2, (0, 0, 1)), (5, (_SHORT, 0, _LONG))),
    "I3": ((2, (-_SHORT, 0, _LONG)), (5, (0, 0, 1))),
    "I4": ((2, (_SHORT, 0, _LONG)), (5, (0, 0, 1))),
}

_FAMILIES = (  # settings of one group that programs use
    ("T", "T@90", "T@180", "T@270", "T222"),
    ("T222", "T", "T@90", "T@180", "T@270"),
    ("I", "I1", "I3", "I4"),
    ("I1", "I2", "I3", "I4"),
    ("I2", "I1", "I3", "I4"),
    ("I3", "I4", "I1", "I2"),
    ("I4", "I3", "I1", "I2"),
)


def symmetry_operators(name: str) -> NDArray[np.float64]:
    """(n, 3, 3) rotation matrices of a point group, acting on (x, y, z), the identity first.

    Raises:
        InputError: the name is not one of RELION's rotation groups.
    """
    group, _, axes = name.strip().upper().partition("@")
    operators = _operators_of(group)
    frame = _frame(axes) if "@" in name else np.eye(3)
    if operators is None or frame is None:
        raise InputError(f"symmetry {name!r} is not a known point group; choose one of {KNOWN_GROUPS}")
    return frame @ operators @ frame.T


def _operators_of(group: str) -> NDArray[np.float64] | None:
    """In RELION's axes; None where the name is none."""
    cyclic = re.fullmatch(r"([CD])([1-9]\d{0,2})", group)
    if cyclic:
        turns = [_rotation((0, 0, 1), i / int(cyclic[2])) for i in range(int(cyclic[2]))]
        flips = [turn @ np.diag([1.0, -1.0, -1.0]) for turn in turns] if cyclic[1] == "D" else []
        return np.array(turns + flips)
    group = "I2" if group == "I" else group
    if group not in _GENERATORS:
        return None
    return _closure([_rotation(axis, 1 / order) for order, axis in _GENERATORS[group]])


def _frame(axes: str) -> NDArray[np.float64] | None:
    """(3, 3) the rotation that takes RELION's axes to those named: X, Y, or degrees about z; None for anything else."""
    if axes in ("X", "Y"):
        return _rotation((0, 1, 0), 1 / 4) if axes == "X" else _rotation((1, 0, 0), -1 / 4)
    if not re.fullmatch(r"-?\d{1,3}(\.\d{1,4})?", axes):
        return None
    return _rotation((0, 0, 1), float(axes) / 360)


def named_by(program: str, name: str) -> str:
    """What a program means by a group's name, as a name in RELION's axes.

    cryoSPARC's Dn has a two-fold along y; that of an even n has one along x as well. Its T has a three-fold along z, as
    RELION's (its developers, CryoSPARC forum, 12482).
    """
    dihedral = re.fullmatch(r"D(\d+)", name.strip().upper())
    if program == "cryoSPARC" and dihedral and int(dihedral[1]) % 2:
        return f"{name.strip()}@90"
    return name


def other_axes(name: str) -> list[str]:
    """The same group in the axes of other programs; none where all of them mean the same axes."""
    group, _, axes = name.strip().upper().partition("@")
    family: tuple[str, ...] = next((family for family in _FAMILIES if group == family[0]), ())
    odd = re.fullmatch(r"D(\d+)", group)
    if odd and int(odd[1]) % 2:
        family = (group, f"{group}@90")
    return [other for other in family if other != (f"{group}@{axes}" if axes else group)]


def describe_axes(name: str) -> str:
    """A name in words where it says more than the group."""
    group, _, axes = name.strip().upper().partition("@")
    if not axes:
        return name
    if axes in ("X", "Y"):
        return f"{name} ({group} with its main axis along {axes.lower()})"
    along_y = group.startswith("D") and float(axes) == 90
    return f"{name} ({group} {'with a two-fold along y' if along_y else f'turned by {axes}° about z'})"


def parts_of(name: str) -> list[str]:
    """Groups that the one asked for contains, or that have other axes, the largest first."""
    group, _, axes = name.strip().upper().partition("@")
    kind, order = group[0], int(group[1:]) if group[1:].isdigit() and group[0] in "CD" else 0
    divisors = [n for n in range(order, 1, -1) if order % n == 0]
    turned = [f"{group}@x", f"{group}@y"] if kind in "CD" and not axes else []
    if kind == "C":
        return [*turned, *(f"C{n}" for n in divisors if n < order)]
    if kind == "D":
        smaller = [f"D{n}{turn}" for n in divisors if n < order for turn in ("", "@90")]
        return [*turned, *smaller, *(f"C{n}" for n in divisors), "D1", "D1@90"]
    return {
        "T": ["D2", "C3", "C2"],
        "O": ["T222", "T", "D4", "C4", "D3", "C3", "D2", "C2"],
        "I": ["T222", "D5", "C5", "D3", "C3", "D2", "C2"],
    }.get(kind, [])


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
