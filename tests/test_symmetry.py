from __future__ import annotations

import re

import numpy as np
import pytest

from emsplat.errors import InputError
from emsplat.symmetry import symmetry_operators
from relion import run_relion

ORDERS = {"C1": 1, "C2": 2, "C7": 7, "D1": 2, "D2": 4, "D7": 14, "T": 12, "O": 24, "I1": 60, "I2": 60, "I3": 60}
ORDERS |= {"I4": 60, "I": 60}


def same_set(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    distance = np.abs(one[:, None] - other[None]).max(axis=(2, 3))
    return len(one) == len(other) and bool((distance.min(axis=0) < tolerance).all())


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_operators_form_a_rotation_group(name: str, order: int) -> None:
    operators = symmetry_operators(name)
    assert operators.shape == (order, 3, 3)
    np.testing.assert_array_equal(operators[0], np.eye(3))
    np.testing.assert_allclose(operators @ operators.transpose(0, 2, 1), np.tile(np.eye(3), (order, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(operators), 1, atol=1e-12)
    for operator in operators:
        assert same_set(operators, operator @ operators, 1e-9)


@pytest.mark.parametrize("name", ORDERS)
def test_operators_are_relions(name: str) -> None:
    printed = run_relion("relion_refine", "--print_symmetry_ops", "--sym", name)
    blocks = re.findall(r"R\(\d+\)=\s*\n((?:[^\n]*\n){3})", printed)
    relions = np.array([np.array(block.split(), dtype=float).reshape(3, 3) for block in blocks])
    assert same_set(relions, symmetry_operators(name), 1e-5)  # RELION's axes have six to eight digits


def test_names_are_forgiving_about_case_and_space() -> None:
    np.testing.assert_array_equal(symmetry_operators(" d2 "), symmetry_operators("D2"))
    np.testing.assert_array_equal(symmetry_operators("i"), symmetry_operators("I2"))


@pytest.mark.parametrize("name", ["", "C", "C0", "D-2", "I5", "Q3", "C1.5", "CI", "D2H"])
def test_an_unknown_group_is_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(InputError, match=r"choose one of C1, C2.*I4") as raised:
        symmetry_operators(name)
    assert "\n" not in str(raised.value)


def is_in(group: np.ndarray, axis: tuple[float, float, float], order: int) -> bool:
    """Whether a group has a rotation by a turn over `order` about an axis."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = 2 * np.pi / order
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return bool(np.isclose(group, rotation, atol=1e-6).all(axis=(1, 2)).any())


@pytest.mark.parametrize(
    ("name", "axis", "order"),
    [
        ("D3", (1, 0, 0), 2),
        ("D3@90", (0, 1, 0), 2),
        ("C4@x", (1, 0, 0), 4),
        ("c5@Y", (0, 1, 0), 5),
        ("D3@x", (1, 0, 0), 3),
        ("T222", (1, 0, 0), 2),
        ("T222", (1, 1, 1), 3),
        ("T@180", (0, 0, 1), 3),
        ("D2@45", (1, 1, 0), 2),
    ],
)
def test_axes_that_a_name_says(name, axis, order):
    assert is_in(symmetry_operators(name), axis, order)
    np.testing.assert_array_equal(symmetry_operators(name)[0].round(12), np.eye(3))


@pytest.mark.parametrize("name", ["D3@", "C4@z", "C4@1e9", "T@xx", "@90", "D3@90@90"])
def test_axes_that_are_none(refuses, name):
    with refuses(name, "is not a known point group"):
        symmetry_operators(name)
