"""Landmarks, the shares of images in them, and posteriors over points."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.heterogeneity.bins import landmarks, shares, sparse
from emsplat.heterogeneity.gtm import point_posterior, shares_of_bins
from emsplat.heterogeneity.posterior import CONTRASTS, ContrastPrior

RNG = np.random.default_rng(0)


def test_landmarks_lie_where_the_latents_do() -> None:
    clusters = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    latents = np.concatenate([c + 0.1 * RNG.normal(size=(200, 2)) for c in clusters])
    found = landmarks(latents, 3, 0)
    distance = np.sqrt(((clusters[:, None] - found) ** 2).sum(axis=2))
    assert distance.min(axis=1).max() < 0.05


def test_shares_follow_the_metric_of_each_image() -> None:
    centres = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 10.0]])
    sharp, vague = np.diag([0.01, 0.01]), np.diag([100.0, 0.01])
    found = shares(np.array([[0.9, 0.0], [0.9, 0.0]]), np.stack([sharp, vague]), centres)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert found[0].tolist() == [0, 1, 0]
    assert found[1, 0] == pytest.approx(0.5, abs=0.01)
    assert found[1, 2] == 0


def test_small_shares_are_dropped_and_the_rest_adds_up() -> None:
    found = sparse(np.array([[0.5, 0.49, 0.01], [1.0, 0, 0]]))
    np.testing.assert_allclose(found, [[0.5 / 0.99, 0.49 / 0.99, 0], [1, 0, 0]], atol=1e-6)


def test_points_are_shared_among_the_bins_near_them() -> None:
    centres = np.array([[0.0], [1.0], [2.0]])
    found = shares_of_bins(np.array([[0.0], [0.5], [5.0]]), centres)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[0, 0] > 0.8
    assert found[1, 0] == pytest.approx(found[1, 1])
    assert found[2, 2] > 0.99


def test_the_posterior_over_points_is_bayes_rule() -> None:
    power, overlap = RNG.uniform(1, 5, (6, 3)), RNG.normal(2, 2, (6, 3))
    prior = ContrastPrior(0.2, 0.05)
    found, populations = point_posterior(power, overlap, np.full(3, 1 / 3), prior)
    # The populations come to a fixed point; with these the posterior is a direct sum over contrasts.
    again, _ = point_posterior(power, overlap, populations, prior)
    c = CONTRASTS[1:, None, None]
    likelihood = (np.exp(prior.log()[1:, None, None] + c * overlap - 0.5 * c**2 * power)).sum(axis=0)
    for _ in range(200):
        weights = likelihood * populations
        junk = np.exp(prior.log()[0]) / (np.exp(prior.log()[0]) + weights.sum(axis=1))
        weights /= weights.sum(axis=1, keepdims=True)
        populations = (1 - junk) @ weights / (1 - junk).sum()
    settled, _ = point_posterior(power, overlap, populations, prior)
    np.testing.assert_allclose(settled.weights, weights, atol=1e-3)
    np.testing.assert_allclose(settled.junk, junk, atol=1e-3)
    np.testing.assert_allclose(again.weights.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found.mean(np.eye(3)), found.weights, atol=1e-6)


def test_moments_over_points() -> None:
    power, overlap = np.zeros((1, 2)), np.zeros((1, 2))
    found, _ = point_posterior(power, overlap, np.array([0.5, 0.5]), ContrastPrior(0.1, 1e-4))
    points = np.array([[-1.0, 0.0], [1.0, 2.0]])
    np.testing.assert_allclose(found.mean(points), [[0, 1]], atol=1e-6)
    np.testing.assert_allclose(found.covariance(points)[0], [[1, 1], [1, 1]], atol=1e-6)


def test_images_of_one_particle_share_their_posterior_over_points() -> None:
    rng = np.random.default_rng(3)
    power, overlap = rng.uniform(1, 2, (6, 3)), rng.normal(2, 0.7, (6, 3))
    particle = np.array([0, 1, 0, 2, 1, 0])
    prior, even = ContrastPrior(0.2, 0.05), np.full(3, 1 / 3)
    found, populations = point_posterior(power, overlap, even, prior, particle)
    c = CONTRASTS[1:, None, None]
    either = np.exp(prior.log()[0]) + np.exp(prior.log()[1:, None, None] + c * overlap - 0.5 * c**2 * power).sum(axis=0)
    product = np.stack([either[particle == k].prod(axis=0) for k in range(3)])
    for _ in range(5):
        weights = product * even
        weights /= weights.sum(axis=1, keepdims=True)
        even = weights.mean(axis=0)
    np.testing.assert_allclose(found.weights, weights[particle], atol=3e-5)  # of the few contrasts
    np.testing.assert_allclose(populations, even, atol=3e-5)
    alone, _ = point_posterior(power, overlap, np.full(3, 1 / 3), prior, np.arange(6))
    assert np.abs(alone.weights - found.weights).max() > 0.05
