"""How many components the other half sees: an unbiased variance with a known error, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from emsplat.heterogeneity.agreement import Seen, moments, seen_from
from emsplat.heterogeneity.alignment import Alignment, aligned, canonical_correlations
from emsplat.heterogeneity.posterior import ContrastPrior
from emsplat.heterogeneity.subspace import Subspace

_SAMPLES = 60


def images(
    n: int, covariance: np.ndarray, seed: int, level: np.ndarray | float = 1.0, changes: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whitened samples, the components' columns, and three more columns along which images change by these amounts.

    The columns of each image are its own, unequal and correlated. Args: level: (n, 1) standard deviation of the noise.
    """
    rng = np.random.default_rng(seed)
    count = len(covariance)
    columns = rng.normal(size=(n, _SAMPLES, count)) * rng.uniform(0.05, 0.2, (n, 1, 1)) * np.geomspace(1, 0.2, count)
    nuisance = rng.normal(size=(n, _SAMPLES, 3)) + 10 * columns[..., :1]
    z = rng.multivariate_normal(np.zeros(count), covariance, n)
    data = np.einsum("nmk,nk->nm", columns, z) + level * rng.normal(size=(n, _SAMPLES))
    data += changes * np.einsum("nmk,nk->nm", nuisance, rng.standard_t(4, size=(n, 3)))
    return tuple(a.astype(np.float32) for a in (data, columns, nuisance))


def seen(*given: object, **options: object) -> Seen:
    found = moments(*images(*given, **options))
    return seen_from(found, np.ones(len(found.gram)), np.arange(len(found.gram)))


def test_a_real_component_has_the_variance_it_was_given() -> None:
    found = seen(20_000, np.diag([1.0, 0.0, 0.0]), 0)
    assert found.count == 1
    assert found.variance[0] == pytest.approx(1.0, abs=0.1)
    direction = found.basis[:, 0] / np.linalg.norm(found.basis[:, 0])
    assert abs(direction[0]) > 0.97


@pytest.mark.parametrize(("variance", "significance", "counts"), [(0.2, 17, 1), (0.2, 5, 0), (0.1, 30, 0), (0.4, 6, 1)])
def test_a_small_variance_counts_if_it_is_beyond_doubt(variance: float, significance: float, counts: int) -> None:
    assert Seen(np.eye(1), np.array([variance]), np.array([significance])).count == counts


@pytest.mark.parametrize("seed", range(8))
def test_components_of_noise_are_not_seen(seed: int) -> None:
    found = seen(3000, np.zeros((6, 6)), seed)
    assert found.count == 0
    assert found.significance.max() < 3.5


def test_the_level_of_the_noise_does_not_matter() -> None:
    level = np.random.default_rng(1).choice([1.1, 2.0], (4000, 1))
    assert seen(4000, np.zeros((3, 3)), 0, level=level).significance.max() < 3.5


def test_how_an_image_was_taken_is_no_component() -> None:
    """The changes lie mostly along the first component, and are larger than the noise."""
    assert seen(4000, np.zeros((3, 3)), 0, changes=0.5).significance.max() < 3.5
    found = seen(20_000, np.diag([0.0, 25.0, 0.0]), 0, changes=0.5)
    assert found.count == 1
    assert found.variance[0] == pytest.approx(25, rel=0.1)


def test_the_significance_counts_from_the_strongest_direction_of_noise() -> None:
    found = [seen(500, np.zeros((3, 3)), seed).significance[0] for seed in range(60)]
    assert np.mean(found) == pytest.approx(0, abs=0.4)
    assert np.std(found) == pytest.approx(1, rel=0.25)


def test_images_without_a_particle_do_not_count() -> None:
    found = moments(*images(3000, np.zeros((2, 2)), 1))
    found.score[:600] *= 10
    weights, number = np.where(np.arange(3000) < 600, 0.0, 1.0), np.arange(3000)
    assert seen_from(found, np.ones(3000), number).count > 0
    assert seen_from(found, weights, number).count == 0


def test_images_of_one_particle_are_judged_together() -> None:
    """A component too weak for single images is seen in particles of ten images, with the right variance."""
    data, columns, nuisance = images(4000, np.zeros((2, 2)), 2)
    particle = np.arange(4000) // 10
    z = np.random.default_rng(3).normal(size=400)[particle]
    found = moments(data + 0.55 * columns[..., 0] * z[:, None], 0.55 * columns, nuisance)
    alone = seen_from(found, np.ones(4000), np.arange(4000))
    together = seen_from(found, np.ones(4000), particle)
    assert alone.significance[0] < 4 < together.significance[0]
    assert together.variance[0] == pytest.approx(1, abs=0.4)
    assert seen_from(found, np.ones(4000), np.random.default_rng(4).permutation(particle)).significance[0] < 3.5


def test_copies_of_images_make_nothing_surer() -> None:
    data = images(400, np.diag([0.3, 0.0]), 2)
    once = seen_from(moments(*data), np.ones(400), np.arange(400))
    copied = moments(*(np.tile(a, (4, *(1,) * (a.ndim - 1))) for a in data))
    found = seen_from(copied, np.ones(1600), np.arange(1600), np.tile(np.arange(400), 4))
    np.testing.assert_allclose(found.variance, once.variance, rtol=1e-6)
    np.testing.assert_allclose(found.significance, once.significance, rtol=1e-6)
    assert seen_from(copied, np.ones(1600), np.arange(1600)).significance[0] > 1.5 * once.significance[0]


def spaces(noise: float = 0.0) -> tuple[Subspace, Subspace, np.ndarray]:
    """Two halves that hold the same maps in other coordinates, z₁ = M z₂, and noise of their own."""
    rng = np.random.default_rng(3)
    mean, u = rng.normal(size=(8, 8, 8)).astype(np.float32), rng.normal(size=(2, 8, 8, 8))
    matrix = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    second = np.einsum("kj,kzyx->jzyx", matrix, u)
    u, second = (v + noise * rng.normal(size=v.shape) for v in (u, second))
    prior = ContrastPrior()
    halves = (Subspace(mean, v.astype(np.float32), prior, 0, 0) for v in (u, second))
    return (*halves, matrix)


def test_alignment_brings_both_halves_to_the_same_maps() -> None:
    first, second, matrix = spaces()
    found = aligned(first, second)
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-5)
    z2 = np.random.default_rng(0).normal(size=(5, 2))
    maps = [np.einsum("nk,kzyx->nzyx", z, s.components) for s, z in ((first, found.mean(z2)), (second, z2))]
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-4)


def test_noise_does_not_shrink_the_latents_of_a_half() -> None:
    first, second, matrix = spaces(noise=1.0)
    found = aligned(first, second)
    np.testing.assert_allclose(found.matrix @ found.matrix.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(found.matrix, matrix, atol=0.15)


def test_alignment_turns_covariances() -> None:
    alignment = Alignment(np.array([[0.0, 1.0], [-1.0, 0.0]]))
    np.testing.assert_allclose(alignment.covariance(np.diag([1.0, 3.0])[None])[0], np.diag([3.0, 1.0]))


def test_canonical_correlations_do_not_know_the_basis() -> None:
    first, second, _ = spaces()
    np.testing.assert_allclose(canonical_correlations(first.components, second.components), 1, atol=1e-5)
