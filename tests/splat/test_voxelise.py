from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from clouds import CASES, NAMES, ROUND, box_of, gaussians
from emsplat.splat import covariances, mass_within, rotation_of_quaternions, voxelise
from parity import assert_alike, voxelised


@pytest.mark.parametrize("case", CASES)
def test_kernels_against_the_reference(case: str) -> None:
    box_size = box_of(case)
    cotangent = torch.randn((box_size,) * 3, generator=torch.Generator().manual_seed(1))
    arguments = (CASES[case], box_size, cotangent)
    got, expected = (voxelised(*arguments, implementation) for implementation in ("cpu", "reference"))
    assert_alike(got, expected, case in ROUND)


def test_any_number_of_threads_gives_the_same_volume() -> None:
    import numba

    volumes = []
    before = numba.get_num_threads()
    for threads in (1, before):
        numba.set_num_threads(threads)
        volumes.append(voxelise(*gaussians(200, 24), 24))
    numba.set_num_threads(before)
    assert torch.equal(*volumes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 6e18])
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_gaussian_out_of_its_mind_harms_no_other(name: str, bad: float) -> None:
    """No endless loop, nothing written outside, nothing of it where the others are."""
    good = gaussians(30, 16)
    mixed = [t.clone() for t in good]
    mixed[NAMES.index(name)][7] = bad
    rest = [t[torch.arange(30) != 7] for t in good]
    leaves = [t.requires_grad_() for t in mixed]
    volume = voxelise(*leaves, 16)
    if not (name == "quaternions" and abs(bad) < math.inf):  # a long quaternion is as good as any
        assert torch.equal(volume, voxelise(*rest, 16))
    gradients = torch.autograd.grad(volume.sum(), leaves)
    expected = torch.autograd.grad(voxelise(*(t.requires_grad_() for t in rest), 16).sum(), rest)
    for g, e in zip(gradients, expected, strict=True):
        assert torch.equal(g[torch.arange(30) != 7], e)


def test_finite_differences() -> None:
    """Float64, and a cut-off of 7: a truncated Gaussian jumps."""
    leaves = [t.double().requires_grad_() for t in gaussians(12, 9, seed=2)]
    rng = torch.Generator().manual_seed(4)
    cotangent = torch.randn(9, 9, 9, generator=rng, dtype=torch.float64)

    def loss(*tensors: Tensor) -> Tensor:
        return (voxelise(*tensors, 9, cutoff=7.0) * cotangent).sum()

    gradients = torch.autograd.grad(loss(*leaves), leaves)
    for i, gradient in enumerate(gradients):
        direction = torch.randn(leaves[i].shape, generator=rng, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = [t.detach() + (sign * 1e-5 * direction if i == j else 0) for j, t in enumerate(leaves)]
            ends.append(loss(*moved))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(torch.sum(gradient * direction).item(), rel=1e-6)


@pytest.mark.parametrize("cutoff", [3.0, 3.5, 5.0])
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_the_sum_is_the_mass(cutoff: float, implementation: str) -> None:
    _, scales, quaternions, masses = gaussians(40, 25)
    centres = gaussians(40, 25)[0] * 0.2
    volume = voxelise(centres, scales.clamp(0.0, 0.5), quaternions, masses, 31, cutoff, implementation)
    assert abs(volume.sum() / masses.exp().sum() - 1) < 1 - mass_within(cutoff)


@pytest.mark.parametrize("cutoff", [1.0, 2.5, 3.5, 7.0])
def test_mass_within(cutoff: float) -> None:
    expected, _ = quad(lambda r: 4 * np.pi * r**2 * np.exp(-(r**2) / 2) / (2 * np.pi) ** 1.5, 0, cutoff)
    assert mass_within(cutoff) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("box_size", [16, 17])
def test_a_whole_shift_moves_the_volume(box_size: int) -> None:
    centres, *others = gaussians(20, box_size)
    shift = torch.tensor([2.0, -1.0, 3.0])
    here, there = (voxelise(c * 0.3, *others, box_size) for c in (centres, centres + shift / 0.3))
    expected = torch.roll(here, (3, -1, 2), dims=(0, 1, 2))
    inner = slice(4, -4)
    difference = (there - expected)[inner, inner, inner]
    assert torch.linalg.norm(difference) < 1e-5 * torch.linalg.norm(here)


@pytest.mark.parametrize("axis", [(1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (1.0, 1.0, 1.0)])
def test_turning_the_gaussians_turns_the_volume(axis: tuple[float, float, float]) -> None:
    """By symmetries of the grid, so that voxels fall on voxels."""
    order = 3 if sum(axis) > 1 else 4
    direction = torch.tensor(axis) / math.sqrt(sum(axis))
    turn = torch.cat([torch.tensor([math.cos(math.pi / order)]), math.sin(math.pi / order) * direction])
    matrix = rotation_of_quaternions(turn[None])[0]
    centres, scales, quaternions, masses = gaussians(20, 15)
    w, v = quaternions[:, :1], quaternions[:, 1:]
    turned = torch.cat(
        [
            turn[0] * w - v @ turn[1:, None],
            turn[0] * v + w * turn[1:] + torch.linalg.cross(turn[1:].expand_as(v), v),
        ],
        dim=1,
    )  # the product turn · quaternion
    before = voxelise(centres, scales, quaternions, masses, 15)
    after = voxelise(centres @ matrix.T, scales, turned, masses, 15)
    r = torch.stack(torch.meshgrid(*[torch.arange(15) - 7] * 3, indexing="ij"), dim=-1).view(-1, 3).flip(1)  # x, y, z
    there = torch.round(r.float() @ matrix.T).long() + 7
    expected = torch.empty_like(before)
    expected[there[:, 2], there[:, 1], there[:, 0]] = before.reshape(-1)
    assert torch.linalg.norm(after - expected) < 1e-5 * torch.linalg.norm(before)


def test_the_moments_of_the_volume_are_the_gaussians() -> None:
    """Mean and covariance of one tilted Gaussian, axes x y z."""
    centre, scales = torch.tensor([[1.3, -2.1, 0.4]]), torch.log(torch.tensor([[1.0, 1.6, 2.4]]))
    quaternion = torch.tensor([[0.8, 0.1, -0.5, 0.3]])
    volume = voxelise(centre, scales, quaternion, torch.zeros(1), 41, cutoff=6.5).double().numpy()
    r = np.arange(41) - 20
    z, y, x = np.meshgrid(r, r, r, indexing="ij")
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    weights = volume.ravel() / volume.sum()
    mean = weights @ points
    assert np.allclose(mean, centre[0], atol=1e-4)
    covariance = (points - mean).T @ ((points - mean) * weights[:, None])
    assert np.allclose(covariance, covariances(scales, quaternion)[0], atol=1e-3)


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="implementation"):
        voxelise(*gaussians(1, 8), 8, implementation="abacus")
    for cutoff in (0.0, 13.0, math.nan):
        with pytest.raises(ValueError, match="cutoff"):
            voxelise(*gaussians(1, 8), 8, cutoff=cutoff)
