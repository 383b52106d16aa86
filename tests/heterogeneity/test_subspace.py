"""The subspace of one half: it finds the component that images were made with, and leaves contrast and poses alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.fourier import maps
from emsplat.heterogeneity.agreement import seen_by
from emsplat.heterogeneity.observations import Observations
from emsplat.heterogeneity.slices import Volumes, half_plane
from emsplat.heterogeneity.subspace import Diverged, Stage, Subspace, embed, learn, stages

BOX, LIMIT, N = 16, 6, 500
STAGE = Stage(BOX, LIMIT, 12)


def gaussian(centre: tuple[float, float, float], sigma: float) -> NDArray[np.float32]:
    """(D, D, D) a ball of density; centre z, y, x in voxels from the middle."""
    axes = np.meshgrid(*(np.arange(BOX) - BOX // 2 - c for c in centre), indexing="ij")
    return np.exp(-0.5 * sum(a**2 for a in axes) / sigma**2).astype(np.float32)


V0 = gaussian((0, 0, 0), 2.0) + gaussian((2, 1, -2), 1.5) + gaussian((-2, -3, 1), 1.2)
U = gaussian((1, 3, 2), 1.3) - gaussian((1, -1, 3), 1.3)
MASK = maps.soft_sphere(BOX, 13, 2)


def images(seed: int, amplitude: float, contrast_sigma: float = 0.0, turn: float = 0.0) -> tuple[Observations, NDArray]:
    """Samples of N images of ``c (V₀ + amplitude z U)`` in white noise, and z; turn: of the poses, degrees."""
    rng = np.random.default_rng(seed)
    matrices, samples = Rotation.random(N, rng=rng).as_matrix(), half_plane(LIMIT)
    z, c = rng.standard_normal(N), 1 + contrast_sigma * rng.standard_normal(N)
    v, u = np.moveaxis(Volumes.of([V0, U]).slices(matrices, samples), 3, 0)
    signal = c[:, None, None] * (v + amplitude * z[:, None, None] * u)
    noise = 8.0
    data = (
        signal[:, :, 0] + 1j * signal[:, :, 1] + noise * (rng.normal(size=(2, N, len(samples))).T @ [1, 1j]).T / 2**0.5
    )
    recorded = Rotation.from_rotvec(np.deg2rad(turn) * rng.normal(size=(N, 3))).as_matrix() @ matrices
    weights = np.full((N, len(samples)), 1 / noise**2, dtype=np.float32)
    return Observations(
        np.arange(N), np.arange(N), samples, (data / noise**2).astype(np.complex64), weights, recorded, BOX
    ), z


def learnt(observations: Observations, count: int = 2, seed: int = 0) -> Subspace:
    return learn(lambda stage: observations, V0, MASK, count, [STAGE], seed)


def test_the_component_is_found_and_latents_follow_it() -> None:
    observations, z = images(0, 1.0, contrast_sigma=0.1)
    space = learnt(observations)
    band = maps.radial_filter(U, np.ones(LIMIT + 1))
    found = space.components[0].ravel()
    assert abs(np.corrcoef(found, band.ravel())[0, 1]) > 0.85
    latent = embed(space, observations).mean[:, 0]
    assert abs(np.corrcoef(latent, z)[0, 1]) > 0.8
    assert latent.std() == pytest.approx(1, abs=0.25)
    # The strongest component stands out.
    sizes = np.linalg.norm(space.components.reshape(2, -1), axis=1)
    assert sizes[0] > 3 * sizes[1]


def test_what_the_consensus_lacks_is_no_component() -> None:
    """Both halves lack the same, so that it would pass for a component that they agree on."""
    observations, z = images(3, 0.7)
    lacking = gaussian((-3, 2, 3), 1.5)
    space = learn(lambda stage: observations, V0 - lacking, MASK, 2, [STAGE], 0)
    latents = embed(space, observations).mean[:, :2]
    assert np.abs(latents.mean(axis=0)).max() < 0.1
    assert abs(np.corrcoef(latents[:, 0], z)[0, 1]) > 0.7


def test_components_do_not_grow_on_the_noise_of_the_images_they_are_learnt_from() -> None:
    """Without the uncertainty of the components, they would have 0.0024 of the map's power."""
    assert max(learnt(images(seed, 0.0)[0]).greatest_power for seed in (5, 6)) < 0.0018


def test_contrast_is_no_component() -> None:
    found = [learnt(images(seed, 0.0, contrast_sigma=0.2)[0]) for seed in (1, 11, 21)]
    assert [space.contrast.sigma for space in found] == pytest.approx([0.2] * 3, abs=0.05)
    overlap = [
        np.corrcoef(u.ravel(), V0.ravel())[0, 1] * np.linalg.norm(u) / np.linalg.norm(V0)
        for space in found
        for u in space.components
    ]
    assert np.sqrt(np.mean(np.square(overlap))) < 0.03
    assert np.abs(overlap).max() < 0.08


def test_neither_contrast_nor_scale_drifts_where_images_differ_in_none() -> None:
    space = learnt(images(1, 0.0)[0])
    assert space.contrast.sigma < 0.06
    band = maps.radial_filter(V0, np.ones(LIMIT + 1))
    found = maps.radial_filter(space.mean, np.ones(LIMIT + 1))
    assert float((found * band).sum() / (band * band).sum()) == pytest.approx(1, abs=0.02)
    assert space.mean.sum() == pytest.approx(V0.sum(), rel=1e-3)


def test_pose_errors_are_taken_up_by_their_columns() -> None:
    sharp, blurred = (learnt(images(2, 0.0, turn=turn)[0]) for turn in (0.0, 4.0))
    assert blurred.turn_sigma > 5 * sharp.turn_sigma
    assert np.rad2deg(blurred.turn_sigma) > 1


@pytest.mark.parametrize(("amplitude", "seeds", "expected"), [(1.0, (3, 4), 1), (0.0, (5, 6), 0), (0.0, (8, 9), 0)])
def test_only_real_components_are_seen_both_ways(amplitude: float, seeds: tuple[int, int], expected: int) -> None:
    pair = [images(seed, amplitude)[0] for seed in seeds]
    spaces = [learnt(observations, seed=seed) for seed, observations in enumerate(pair)]
    counts = [seen_by(spaces[1 - i], spaces[i].components, pair[1 - i]).count for i in (0, 1)]
    assert min(counts) == expected


def test_a_mask_keeps_components_within_it() -> None:
    observations, _ = images(7, 1.0)
    half = MASK * (np.arange(BOX) < BOX // 2).astype(np.float32)  # x below the middle: U lies above it
    inside = learn(lambda stage: observations, V0, half, 1, [STAGE], 0).components[0]
    assert np.abs(inside[half == 0]).max() < 0.02 * np.abs(inside).max()


def test_stages_end_at_the_finest_shell() -> None:
    found = stages(64, 18)
    assert [s.limit_shell for s in found] == [6, 10, 15, 18]
    assert all(2 * s.limit_shell < s.box_size <= 64 for s in found)
    assert stages(20, 4)[-1].limit_shell == 4
    assert replace(found[0], iterations=1).iterations == 1


@pytest.mark.parametrize("factor", [np.nan, 1e30])
def test_iterations_that_lead_to_no_finite_numbers_say_so(factor: float) -> None:
    observations, _ = images(4, 1.0)
    with pytest.raises(Diverged):
        learnt(replace(observations, spectra=observations.spectra * np.complex64(factor)))
