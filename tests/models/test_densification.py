from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from emsplat.models.densification import DensitySettings, _split, control, is_due, sample_centres
from emsplat.models.parameters import NAMES, Adam, Parameters
from emsplat.splat import covariances

STEPS = {"centres": 0.1, "log_scales": 0.03, "quaternions": 0.03, "log_masses": 0.04}


def some_parameters(n: int, isotropic: bool = False, seed: int = 0) -> Parameters:
    rng = torch.Generator().manual_seed(seed)
    return Parameters(
        6 * torch.randn(n, 3, generator=rng),
        0.3 * torch.randn(n, 1 if isotropic else 3, generator=rng),
        torch.randn(n, 4, generator=rng),
        0.5 * torch.randn(n, generator=rng),
    )


def step(optimiser: Adam, gradients: Parameters) -> None:
    for name in NAMES:
        getattr(optimiser.parameters, name).grad = getattr(gradients, name).clone()
    optimiser.step(1.0)


def equal(one: Parameters, other: Parameters) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in NAMES)


def moments(p: Parameters, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mass, mean and covariance of a mixture."""
    masses = p.log_masses[rows].double().exp()
    share = masses / masses.sum()
    centres = p.centres[rows].double()
    mean = share @ centres
    within = covariances(p.log_scales[rows].double(), p.quaternions[rows].double())
    between = torch.einsum("ki,kj->kij", centres - mean, centres - mean)
    return masses.sum(), mean, torch.einsum("k,kij->ij", share, within + between)


@pytest.mark.parametrize("isotropic", [False, True])
def test_two_halves_are_the_whole(isotropic: bool) -> None:
    parents = some_parameters(9, isotropic)
    halves = _split(parents, np.random.default_rng(1))
    assert len(halves) == 18
    for i in range(9):
        (mass, mean, spread), (mass_2, mean_2, spread_2) = moments(parents, [i]), moments(halves, [i, 9 + i])
        assert mass_2 == pytest.approx(mass.item(), rel=1e-5)
        assert torch.allclose(mean_2, mean, atol=1e-5)
        if isotropic:  # balls can keep the variance along the line between them only
            apart = torch.nn.functional.normalize((halves.centres[i] - halves.centres[9 + i]).double(), dim=0)
            spread, spread_2 = apart @ spread @ apart, apart @ spread_2 @ apart
        assert torch.allclose(spread_2, spread, rtol=1e-4, atol=1e-5)


def test_control_prunes_and_grows_to_its_target() -> None:
    """Round after round, never beyond."""
    rng = np.random.default_rng(0)
    start = some_parameters(40)
    start.log_masses[:5] = -20.0  # carry nothing
    optimiser = Adam(start, STEPS)
    settings = DensitySettings()
    counts = []
    for _ in range(8):
        control(optimiser, 150, settings, rng)
        counts.append(len(optimiser.parameters))
        step(optimiser, some_parameters(counts[-1]))  # every state has a row for every Gaussian
    assert counts[0] == 35 + math.ceil(settings.grow * 40)
    assert counts == sorted(counts)
    assert counts[-1] == 150
    assert optimiser.parameters.log_masses.min() > -10


def test_control_at_its_target_only_prunes() -> None:
    start = some_parameters(30)
    start.log_masses[4] = -20.0
    optimiser = Adam(start, STEPS)
    control(optimiser, 29, DensitySettings(), np.random.default_rng(0))
    assert equal(optimiser.parameters, start.rows(torch.arange(30) != 4))


def test_what_is_pulled_hardest_is_split() -> None:
    """In σ: a wide Gaussian moves the map more than a narrow one."""
    start, gradients = some_parameters(40), some_parameters(40, seed=1)
    start.log_masses.zero_()
    gradients.centres.fill_(0.1)
    gradients.centres[7] = 5.0
    start.log_scales[11] = 6.0
    optimiser = Adam(start, STEPS)
    step(optimiser, gradients)
    before = optimiser.parameters
    control(optimiser, 42, DensitySettings(), np.random.default_rng(0))
    born = optimiser.parameters.rows(torch.arange(38, 42))
    assert len(optimiser.parameters) == 42
    assert equal(
        optimiser.parameters.rows(torch.arange(38)), before.rows((torch.arange(40) != 7) & (torch.arange(40) != 11))
    )
    middles = 0.5 * (born.centres[:2] + born.centres[2:])
    torch.testing.assert_close(
        middles[middles[:, 0].argsort()], before.centres[[7, 11]][before.centres[[7, 11], 0].argsort()]
    )


@pytest.mark.parametrize("isotropic", [False, True])
def test_the_optimisers_memory_follows_the_rows(isotropic: bool) -> None:
    """Rows that stay go on as if nothing had happened; new ones start as with a new optimiser."""
    first, second = some_parameters(10, isotropic, 1), some_parameters(10, isotropic, 2)
    undisturbed, changed = (Adam(some_parameters(10, isotropic), STEPS) for _ in range(2))
    added, added_gradients = some_parameters(3, isotropic, 3), some_parameters(3, isotropic, 4)
    fresh = Adam(added, STEPS)
    for optimiser in (undisturbed, changed):
        for _ in range(3):
            step(optimiser, first)
    keep = torch.tensor([True, False, True, True, False, True, True, True, False, True])
    changed.replace(keep, added)
    kept = second.rows(keep)
    both = Parameters(**{n: torch.cat([getattr(kept, n), getattr(added_gradients, n)]) for n in NAMES})
    for _ in range(2):
        step(undisturbed, second)
        step(changed, both)
        step(fresh, added_gradients)
    assert equal(changed.parameters.rows(torch.arange(7)), undisturbed.parameters.rows(keep))
    assert equal(changed.parameters.rows(torch.arange(7, 10)), fresh.parameters.rows(torch.arange(3)))


def test_adams_first_step_is_its_step_size() -> None:
    start = some_parameters(5)
    optimiser = Adam(start, STEPS)
    step(optimiser, some_parameters(5, seed=1))
    for name in NAMES:
        moved = (getattr(optimiser.parameters, name) - getattr(start, name)).detach()
        shares = moved.abs() / STEPS[name]
        assert shares.max() < 1.001
        assert shares.median() > (0.9 if name == "quaternions" else 0.999)


def test_a_round_gaussian_is_not_turned_by_rounding() -> None:
    """Its quaternion has no gradient but what rounding leaves, which Adam would make whole steps of."""
    start, gradients = some_parameters(5), some_parameters(5, seed=1)
    optimiser = Adam(start, STEPS)
    for seed in range(3):
        gradients.quaternions.copy_(1e-7 * some_parameters(5, seed=seed).quaternions)
        step(optimiser, gradients)
    assert (optimiser.parameters.quaternions - start.quaternions).abs().max() < 1e-3 * STEPS["quaternions"]


@pytest.mark.parametrize("edge", [12, 13])
def test_centres_are_drawn_in_proportion(edge: int) -> None:
    weight = np.random.default_rng(0).random((edge, edge, edge)) ** 4
    weight[:, : edge // 2] = 0
    n = 200_000
    centres = sample_centres(weight, n, np.random.default_rng(1))
    voxel = np.clip(np.rint(centres).astype(int) + edge // 2, 0, edge - 1)  # single precision rounds some to a face
    counts = np.zeros_like(weight)
    np.add.at(counts, (voxel[:, 2], voxel[:, 1], voxel[:, 0]), 1)
    # Stratified along the voxels' order, so closer to the share than independent draws would be.
    assert np.abs(counts - n * weight / weight.sum()).max() <= 2


def test_no_weight_no_centres() -> None:
    rng = np.random.default_rng(0)
    assert sample_centres(np.zeros((4, 4, 4)), 10, rng).shape == (0, 3)
    assert sample_centres(np.ones((4, 4, 4)), 0, rng).shape == (0, 3)


def test_rounds_come_when_they_should() -> None:
    settings = DensitySettings(every=10, first=5, until_share=0.5)
    assert [s for s in range(200) if is_due(s, 100, settings)] == [5, 15, 25, 35, 45]
