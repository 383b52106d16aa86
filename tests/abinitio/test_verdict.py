from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emsplat.abinitio import grids
from emsplat.abinitio.full import Found
from emsplat.abinitio.halves import Start
from emsplat.abinitio.modes import Modes
from emsplat.abinitio.stochastic import Trace
from emsplat.abinitio.verdict import MATES, Criterion, Verdict, _views, evenness
from emsplat.symmetry import symmetry_operators

EMPTY = np.zeros((4, 4, 4), np.float32)


def criterion(value: float) -> Criterion:
    return Criterion("poses", value, 0.6, 0.25, "the share of poses on which the halves agree")


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ((0.9, 0.6), "converged"),
        ((0.9, 0.59), "uncertain"),
        ((0.59, 0.24), "failed"),
        ((0.9, float("nan")), "failed"),
    ],
)
def test_the_worst_criterion_decides(values: tuple[float, ...], status: str) -> None:
    verdict = Verdict(tuple(criterion(value) for value in values))
    assert verdict.status == status
    assert len(verdict.doubts) == sum(criterion(value).status != "converged" for value in values)
    assert status in verdict.text()
    assert verdict.summary()["status"] == status


def test_mates_that_are_as_frequent_count_together() -> None:
    shares = np.array([0.28, 0.25, 0.24, 0.05])
    assert Modes(np.tile(np.eye(3), (4, 1, 1)), shares).even == pytest.approx(0.77)
    assert Modes(np.empty((0, 3, 3)), np.empty(0)).even == 0


@pytest.mark.parametrize("group", ["C1", "D2", "O", "I"])
def test_views_are_judged_by_what_an_asymmetric_unit_can_hold(group: str) -> None:
    symmetry = symmetry_operators(group)
    everywhere = grids.frames(grids.directions(1000, Rotation.random(rng=3).as_matrix(), symmetry))
    for rotations, least, most in ((everywhere, 0.9, 1.0), (np.repeat(everywhere[:1], 200, axis=0), 0.0, 0.25)):
        found = replace(Found.empty(len(rotations)), rotations=rotations)
        start = Start(EMPTY, EMPTY, found, Trace(), Trace(), [])
        assert least <= _views((start, start), symmetry) <= most


def modes(*shares: float) -> Modes:
    return Modes(np.tile(np.eye(3), (len(shares), 1, 1)), np.array(shares))


def test_mates_that_images_turn_to_from_one_place_do_not_agree() -> None:
    """The shares of a wrong run, both of whose halves had mixed up the mates of a pseudo-sixfold ring alike."""
    assert modes(0.634, 0.077, 0.045, 0.014, 0.013, 0.01, 0.01).agreed == 0.634
    assert modes(0.28, 0.25, 0.24, 0.05).agreed == pytest.approx(0.82)
    assert modes().agreed == 0


def test_refinement_must_tell_mates_apart_and_not_only_even_them_out() -> None:
    mixed_up, evened_out = modes(0.3, 0.28, *[0.04] * 10), modes(*[0.07] * 14)
    assert evenness(mixed_up) < 0.7 <= evenness(evened_out)
    assert evenness(evened_out, mixed_up) == evenness(mixed_up)
    assert evenness(modes(0.46, 0.42, 0.02), mixed_up) > 0.9
    assert evenness(modes(0.9, 0.02), modes(0.5, 0.2)) == 1
    assert evenness(modes()) == 0


def test_only_mates_that_are_mixed_up_may_still_be_mended_by_refinement() -> None:
    failed = Criterion(MATES, 0.2, 0.7, 0.3, "the evenness of the poses' shares on symmetry mates")
    assert not Verdict((failed, criterion(0.9))).is_beyond_refinement
    assert Verdict((failed, criterion(0.1))).is_beyond_refinement
