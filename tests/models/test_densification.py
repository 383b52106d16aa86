from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from emsplat.fit.state import FitState
from emsplat.models.densification import Densification, DensificationSchedule, _split, sample_centres
from emsplat.models.gaussian_model import GaussianModel, GaussianSettings
from emsplat.models.parameters import NAMES, Parameters
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


def fit_of(start: Parameters, target: int = 0) -> FitState[GaussianModel]:
    return FitState.beginning(GaussianModel(start, 40, GaussianSettings(target)), STEPS, seed=0)


def step(state: FitState[GaussianModel], gradients: Parameters) -> None:
    for name, leaf in state.model.leaves.items():
        leaf.grad = getattr(gradients, name).clone()
    state.optimiser.step(state.model.leaves, 1.0)


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


def test_a_round_prunes_and_grows_to_its_target() -> None:
    """Round after round, never beyond."""
    start = some_parameters(40)
    start.log_masses[:5] = -20.0  # carry nothing
    state = fit_of(start, target=150)
    counts = []
    for _ in range(8):
        state.model.densify(state.optimiser, state.rng)
        counts.append(len(state.model))
        step(state, some_parameters(counts[-1]))  # every state has a row for every Gaussian
    assert counts[0] == 35 + math.ceil(Densification().grow * 40)
    assert counts == sorted(counts)
    assert counts[-1] == 150
    assert state.model.parameters.log_masses.min() > -10


def test_a_round_at_its_target_only_prunes() -> None:
    start = some_parameters(30)
    start.log_masses[4] = -20.0
    state = fit_of(start, target=29)
    state.model.densify(state.optimiser, state.rng)
    assert equal(state.model.parameters, start.rows(torch.arange(30) != 4))


def test_what_is_pulled_hardest_is_split() -> None:
    """In σ: a wide Gaussian moves the map more than a narrow one."""
    start, gradients = some_parameters(40), some_parameters(40, seed=1)
    start.log_masses.zero_()
    gradients.centres.fill_(0.1)
    gradients.centres[7] = 5.0
    start.log_scales[11] = 6.0
    state = fit_of(start, target=42)
    step(state, gradients)
    before = state.model.parameters
    state.model.densify(state.optimiser, state.rng)
    after = state.model.parameters
    born = after.rows(torch.arange(38, 42))
    assert len(after) == 42
    assert equal(after.rows(torch.arange(38)), before.rows((torch.arange(40) != 7) & (torch.arange(40) != 11)))
    middles = 0.5 * (born.centres[:2] + born.centres[2:])
    torch.testing.assert_close(
        middles[middles[:, 0].argsort()], before.centres[[7, 11]][before.centres[[7, 11], 0].argsort()]
    )


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
    schedule = DensificationSchedule(every=10, first=5, until_share=0.5)
    assert [step for step in range(200) if schedule.is_due(step, anneal_from=100)] == [5, 15, 25, 35, 45]
