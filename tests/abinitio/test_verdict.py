from __future__ import annotations

import pytest

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
