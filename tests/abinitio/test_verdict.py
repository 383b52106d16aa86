from __future__ import annotations

import numpy as np
import pytest

from emsplat.abinitio.modes import Modes
from emsplat.abinitio.verdict import Criterion, Verdict


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
