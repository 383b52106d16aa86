"""Trajectories stay where images are."""

from __future__ import annotations

import numpy as np

from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.trajectories import trajectories


def latents_on(z: np.ndarray, junk: np.ndarray | None = None) -> Latents:
    n = len(z)
    zeros = np.zeros(n)
    return Latents(
        np.array([str(i) for i in range(n)]), np.ones(n, dtype=np.int8), z, np.zeros((n, *2 * z.shape[1:])), zeros,
        zeros if junk is None else junk, zeros, np.zeros(n, dtype=np.int32),
    )  # fmt: skip


def test_the_other_latents_follow_the_images() -> None:
    t = np.random.default_rng(0).uniform(-1, 1, 4000)
    first, second = trajectories(latents_on(np.stack([t, t**2], axis=1)))
    np.testing.assert_allclose(first.points[:, 1], first.points[:, 0] ** 2, atol=0.1)
    assert np.all(np.diff(first.points[:, 0]) > 0)
    np.testing.assert_allclose(first.points[[0, -1], 0], [-0.9, 0.9], atol=0.03)
    assert first.images.sum() == 4000 and second.component == 1


def test_junk_has_no_say() -> None:
    z = np.concatenate([np.random.default_rng(0).normal(size=(500, 1)), np.full((100, 1), 50.0)])
    (found,) = trajectories(latents_on(z, (z[:, 0] > 10).astype(float)))
    assert found.points.max() < 5
