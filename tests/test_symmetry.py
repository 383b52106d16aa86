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
