"""Latents with the contrast integrated out, against integration by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.heterogeneity.posterior import (
    CONTRASTS,
    ContrastPrior,
    ContrastStep,
    Inner,
    _with_prior,
    posterior,
    posterior_of_particles,
)

RNG = np.random.default_rng(0)
PRIOR = ContrastPrior(sigma=0.2, junk=0.1)


def images(n: int, m: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, m, 1 + K) columns and (n, m) data with unit noise."""
    columns = RNG.normal(size=(n, m, count + 1))
    z = RNG.normal(size=(n, count))
    return columns, columns[:, :, 0] + np.einsum("nmk,nk->nm", columns[:, :, 1:], z) + RNG.normal(size=(n, m))


def inner_of(columns: np.ndarray, data: np.ndarray) -> Inner:
    """V₀'s column comes again as the last one."""
    columns = np.concatenate([columns, columns[:, :, :1]], axis=2)
    return Inner(np.einsum("nmk,nml->nkl", columns, columns), np.einsum("nmk,nm->nk", columns, data))


def test_moments_are_those_of_the_integrals() -> None:
    columns, data = images(4, 3, 1)
    found = posterior(inner_of(columns, data), np.array([0.7, 0.0]), PRIOR)
    z = np.linspace(-8, 8, 4001)
    for i in range(4):
        weight = np.empty((len(CONTRASTS), len(z)))
        for c, log in enumerate(PRIOR.log()):
            model = CONTRASTS[c] * (columns[i, :, 0] + z[:, None] * columns[i, :, 1])
            misfit = 0.5 * ((data[i] - model) ** 2).sum(axis=1) - 0.5 * (data[i] ** 2).sum()
            weight[c] = np.exp(log - misfit - 0.5 * z**2 / 0.7) / np.sqrt(2 * np.pi * 0.7) * (z[1] - z[0])
        evidence = weight.sum()
        weight /= evidence
        assert found.log_evidence[i] == pytest.approx(np.log(evidence), abs=1e-6)
        c = CONTRASTS[:, None]
        expected = {
            "mean": (weight * z).sum(),
            "c": (weight * c).sum(),
            "cc": (weight * c**2).sum(),
            "cz": (weight * c * z).sum(),
            "ccz": (weight * c**2 * z).sum(),
            "cczz": (weight * c**2 * z**2).sum(),
            "junk": weight[0].sum(),
            "covariance": (weight * z**2).sum() - (weight * z).sum() ** 2,
        }
        for name, value in expected.items():
            assert np.ravel(getattr(found, name)[i])[0] == pytest.approx(value, abs=1e-6), name


def test_several_latents_at_a_known_contrast_are_linear_regression() -> None:
    columns, data = images(5, 40, 3)
    sharp = ContrastPrior(sigma=1e-3, junk=1e-9)
    variances = np.array([1.0, 0.5, 2.0])
    found = posterior(inner_of(columns, data), np.append(variances, 0.0), sharp)
    for i in range(5):
        u = columns[i, :, 1:]
        precision = u.T @ u + np.diag(1 / variances)
        np.testing.assert_allclose(found.covariance[i][:3, :3], np.linalg.inv(precision), atol=1e-6)
        expected = np.linalg.solve(precision, u.T @ (data[i] - columns[i, :, 0]))
        np.testing.assert_allclose(found.mean[i][:3], expected, atol=1e-6)


def test_a_latent_without_variance_stays_at_zero() -> None:
    columns, data = images(3, 10, 2)
    found = posterior(inner_of(columns, data), np.array([1.0, 0.0, 0.0]), PRIOR)
    np.testing.assert_array_equal(found.mean[:, 1], 0)
    alone = posterior(inner_of(columns[:, :, :2], data), np.array([1.0, 0.0]), PRIOR)
    np.testing.assert_allclose(found.mean[:, 0], alone.mean[:, 0], atol=1e-9)


def test_empty_images_are_found_and_say_nothing() -> None:
    n, m = 400, 100
    columns = RNG.normal(size=(n, m, 2))
    empty = np.arange(n) % 4 == 0
    data = np.where(empty[:, None], 0, columns[:, :, 0] + RNG.normal(size=(n, 1)) * columns[:, :, 1])
    found = posterior(inner_of(columns, data + RNG.normal(size=(n, m))), np.array([1.0, 0.0025]), PRIOR)
    assert ((found.junk > 0.5) == empty).mean() > 0.99
    assert abs(found.cz[empty]).max() < 0.1 < abs(found.cz[~empty]).mean()


def test_the_prior_of_the_contrast_is_learnt() -> None:
    n, m = 2000, 400
    columns = RNG.normal(size=(n, m, 2))
    contrast = RNG.normal(1, 0.15, n)
    data = contrast[:, None] * columns[:, :, 0] + RNG.normal(size=(n, m))
    prior = ContrastPrior(0.3, 0.05)
    for _ in range(20):
        found = posterior(inner_of(columns, data), np.array([1e-6, 0.0025]), prior)
        step = ContrastStep(prior)
        step.add(found)
        prior = step.prior()
    assert prior.sigma == pytest.approx(0.15, rel=0.1)
    assert prior.junk < 0.002
    assert np.corrcoef(found.contrast, contrast)[0, 1] > 0.9


def test_contrasts_between_those_of_the_grid_are_found() -> None:
    n, m = 300, 3000  # so sharp that one value of the grid is far from the next
    columns = RNG.normal(size=(n, m, 2))
    contrast = RNG.uniform(0.8, 1.2, n)
    data = contrast[:, None] * columns[:, :, 0] + RNG.normal(size=(n, m))
    found = posterior(inner_of(columns, data), np.array([1.0, 0.0025]), PRIOR)
    assert np.abs(found.contrast - contrast).mean() < 0.03
    assert np.abs(found.mean[:, 0]).mean() < 0.03  # the component does not stand in for it


def test_a_prior_of_ones_own_moves_all_moments() -> None:
    columns, data = images(4, 3, 1)
    mean, sigma = np.array([0.4, -1.0, 2.0, 0.0]), np.array([0.3, 0.5, 1.0, 2.0])
    found = _with_prior(inner_of(columns, data), np.array([1.0, 0.0]), PRIOR, mean[:, None], sigma[:, None, None])
    z = np.linspace(-12, 12, 6001)
    for i in range(4):
        c = CONTRASTS[:, None]
        model = c[:, :, None] * (columns[i, :, 0] + z[:, None] * columns[i, :, 1])
        misfit = 0.5 * ((data[i] - model) ** 2).sum(axis=2)
        log = PRIOR.log()[:, None] - misfit - 0.5 * ((z - mean[i]) / sigma[i]) ** 2
        weight = np.exp(log - log.max())
        weight /= weight.sum()
        expected = {
            "mean": (weight * z).sum(),
            "cz": (weight * c * z).sum(),
            "ccz": (weight * c**2 * z).sum(),
            "cczz": (weight * c**2 * z**2).sum(),
            "covariance": (weight * z**2).sum() - (weight * z).sum() ** 2,
        }
        for name, value in expected.items():
            assert np.ravel(getattr(found, name)[i])[0] == pytest.approx(value, abs=1e-6), name


def test_images_of_a_particle_share_what_they_say_of_it() -> None:
    columns, data = images(6, 40, 2)
    z = RNG.normal(size=(2, 2))
    particle = np.array([7, 7, 7, 3, 3, 5])
    data += np.einsum("nmk,nk->nm", columns[:, :, 1:], 3 * z[[0, 0, 0, 1, 1, 1]])
    sharp = ContrastPrior(sigma=1e-3, junk=1e-200)
    variances = np.array([1.0, 1.0, 0.0])
    found = posterior_of_particles(inner_of(columns, data), variances, sharp, particle, 2)
    for number in (7, 3, 5):
        rows = particle == number
        u = columns[rows, :, 1:].reshape(-1, 2)
        left = (data - columns[:, :, 0])[rows].ravel()
        precision = u.T @ u + np.eye(2)
        for i in np.flatnonzero(rows):
            np.testing.assert_allclose(found.covariance[i, :2, :2], np.linalg.inv(precision), atol=1e-6)
            np.testing.assert_allclose(found.mean[i, :2], np.linalg.solve(precision, u.T @ left), atol=1e-6)


def test_images_of_their_own_particles_are_left_alone() -> None:
    columns, data = images(5, 10, 2)
    inner, variances = inner_of(columns, data), np.array([1.0, 1.0, 0.0])
    found = posterior_of_particles(inner, variances, PRIOR, np.arange(5), 2)
    np.testing.assert_array_equal(found.mean, posterior(inner, variances, PRIOR).mean)
