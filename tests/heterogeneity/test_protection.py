"""Tests of latents: what they must not encode is found when they do, and not when they do not."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.heterogeneity.protection import r_squared

RNG = np.random.default_rng(0)


def test_chance_explains_nothing() -> None:
    found = [r_squared(RNG.normal(size=(300, 8)), RNG.normal(size=(300, 2))) for _ in range(100)]
    assert np.mean(found) == pytest.approx(0, abs=0.005)


def test_a_dependence_is_measured() -> None:
    x = RNG.normal(size=(20_000, 3))
    z = np.stack([x[:, 0] + RNG.normal(size=len(x)), RNG.normal(size=len(x))], axis=1)
    assert r_squared(x, z) == pytest.approx(0.25, abs=0.02)  # half of one latent of two


def test_a_constant_predicts_nothing() -> None:
    assert r_squared(np.ones((50, 2)), RNG.normal(size=(50, 1))) == 0
