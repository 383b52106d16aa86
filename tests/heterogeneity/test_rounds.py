"""Rounds of bins and decoder: what is tried again, and where the images are placed anew."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.heterogeneity.fit_decoder import DecoderHistory, DecoderSettings
from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.rounds import _drawn, _worth_trying


@pytest.mark.parametrize(("mass", "both", "tried"), [(-50, -49.6, 2), (-50, -49.4, 1), (-49.6, -50, 2), (-49, -50, 1)])
def test_a_variant_that_was_far_behind_is_not_tried_again(mass: float, both: float, tried: int) -> None:
    found = _worth_trying((DecoderHistory("mass", best=mass), DecoderHistory("both", best=both)))
    assert len(found) == tried
    assert ("mass" if mass < both else "both") in found


def test_warm_steps_are_smaller_and_few() -> None:
    cold = DecoderSettings()
    warm = cold.warm()
    assert 0 < warm.mass_step < cold.mass_step and 0 < warm.displacement_step < cold.displacement_step
    assert warm.most_steps < cold.most_steps and warm.anneal_steps == cold.anneal_steps


def test_points_are_drawn_as_widely_as_the_posteriors_reach() -> None:
    """Images without a particle do not count."""
    rng, n = np.random.default_rng(0), 20_000
    covariance = np.array([[1.0, 0.3], [0.3, 0.5]])
    mean = rng.multivariate_normal([1, -2], [[4, 1], [1, 1]], n)
    junk = (np.arange(n) % 4 == 0).astype(np.float64)
    mean[junk > 0] += 100
    latents = Latents(
        np.arange(n).astype(str), np.ones(n, dtype=np.int8), mean, np.tile(covariance, (n, 1, 1)), np.ones(n), junk,
        np.zeros(n), np.zeros(n, dtype=np.int32),
    )  # fmt: skip
    found = _drawn(latents, 0)
    assert len(found) == (junk == 0).sum()
    np.testing.assert_allclose(np.cov(found.T), [[5, 1.3], [1.3, 1.5]], atol=0.2)
    np.testing.assert_allclose(found.mean(axis=0), [1, -2], atol=0.06)
