from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clouds import CASES, NAMES, ROUND, Gaussians, box_of, gaussians
from emsplat.conventions import rotation_matrices
from emsplat.splat import covariances, mass_within, project, rotation_of_quaternions, turned, voxelise
from emsplat.splat.bandlimit import WIDENING, boosted_images, widened
from parity import Poses, assert_alike, poses, projected, random


@pytest.mark.parametrize("n_images", [0, 4])
@pytest.mark.parametrize("case", CASES)
def test_kernels_against_the_reference(case: str, n_images: int) -> None:
    box_size = box_of(case)
    cotangent = random(n_images, box_size, box_size, seed=1)
    arguments = (CASES[case], poses(n_images), box_size, cotangent)
    got, expected = (projected(*arguments, implementation) for implementation in ("cpu", "reference"))
    assert_alike(got, expected, case in ROUND)


def test_any_number_of_threads_gives_the_same() -> None:
    import numba

    before = numba.get_num_threads()
    found = []
    for threads in (1, before):
        numba.set_num_threads(threads)
        images, gradients = projected(gaussians(200, 24), poses(7), 24, random(7, 24, 24), "cpu")
        found.append([images, *gradients])
    numba.set_num_threads(before)
    for one, many in zip(*found, strict=True):
        assert torch.equal(one, many)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 6e18])
@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_a_gaussian_out_of_its_mind_harms_no_other(name: str, bad: float, implementation: str) -> None:
    """No endless loop, nothing written outside, nothing of it where the others are, nor in the poses' gradients."""
    good = gaussians(30, 16)
    mixed = [t.clone() for t in good]
    mixed[NAMES.index(name)][7] = bad
    others = torch.arange(30) != 7
    rest = tuple(t[others] for t in good)
    cotangent = random(3, 16, 16)
    images, gradients = projected(tuple(mixed), poses(3), 16, cotangent, implementation)
    expected, expected_gradients = projected(rest, poses(3), 16, cotangent, implementation)
    if not (name == "quaternions" and abs(bad) < math.inf):  # a long quaternion is as good as any
        torch.testing.assert_close(images, expected)
        torch.testing.assert_close(gradients[4:], expected_gradients[4:])
    for g, e in zip(gradients[:4], expected_gradients[:4], strict=True):
        torch.testing.assert_close(g[others], e)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("scales", [(-math.inf, -math.inf, 1.0), (-math.inf, 1.0, 1.0), (-50.0, -50.0, -50.0)])
def test_what_has_no_extent_adds_nothing(implementation: str, scales: tuple[float, ...]) -> None:
    """A line, a plane, a point: where the shadow has no area, there is no image and no gradient, and no NaN."""
    quaternion = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    model = (torch.zeros(1, 3), torch.tensor([scales]), quaternion, torch.zeros(1))
    edge_on = torch.tensor(rotation_matrices([[0.0, 0.0, 0.0], [90.0, 0.0, 0.0]]))
    images, gradients = projected(model, (edge_on, torch.zeros(2, 2)), 9, random(2, 9, 9), implementation)
    assert not images.any()
    for g in gradients:
        assert not g.any()  # NaN is any


def test_finite_differences() -> None:
    """Float64, a cut-off of 7: a truncated Gaussian jumps. Poses by tangent vectors, at 0 and elsewhere."""
    rotations, shifts = poses(3)
    tangents = torch.cat([torch.zeros(1, 3, dtype=torch.float64), 0.3 * random(2, 3)])
    names = (*NAMES, "tangents", "shifts")
    leaves = [t.double() for t in gaussians(12, 9, seed=2)] + [tangents, shifts]
    cotangent = random(3, 9, 9, seed=4)

    def loss(*tensors: Tensor) -> Tensor:
        *model, omega, shift = tensors
        return (project(*model, turned(rotations, omega), shift, 9, cutoff=7.0) * cotangent).sum()

    gradients = torch.autograd.grad(loss(*(t.requires_grad_() for t in leaves)), leaves)
    for i, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
        direction = random(*leaves[i].shape, seed=i)
        ends = [
            loss(*(t.detach() + (sign * 1e-5 * direction if i == j else 0) for j, t in enumerate(leaves)))
            for sign in (1, -1)
        ]
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(torch.sum(gradient * direction).item(), rel=1e-6), name


def test_tangents_turn_from_the_left() -> None:
    """By the angle |ω| about ω in the frame of the image; ω_z in its plane, x towards y."""
    rotations, _ = poses(5)
    tangents = random(5, 3)
    for a, omega, got in zip(rotations, tangents, turned(rotations, tangents), strict=True):
        angle = omega.norm()
        quaternion = torch.cat([torch.cos(angle / 2)[None], torch.sin(angle / 2) * omega / angle])
        torch.testing.assert_close(got, rotation_of_quaternions(quaternion[None])[0] @ a)
    quarter = turned(torch.eye(3)[None], torch.tensor([[0.0, 0.0, math.pi / 2]]))[0]
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize("cutoff", [3.0, 3.5, 5.0])
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_the_sum_is_the_mass(cutoff: float, implementation: str) -> None:
    centres, scales, quaternions, masses = gaussians(40, 25)
    images = project(0.2 * centres, scales.clamp(0.0, 0.5), quaternions, masses, *poses(5), 33, cutoff, implementation)
    assert abs(images.sum(dim=(1, 2)) / masses.exp().sum() - 1).max() < 1 - mass_within(cutoff, dimensions=2)


@pytest.mark.parametrize("cutoff", [1.0, 2.5, 3.5])
def test_mass_within_a_disc(cutoff: float) -> None:
    radius = (np.arange(200_000) + 0.5) / 200_000 * cutoff
    ring = radius * np.exp(-(radius**2) / 2) * cutoff / 200_000
    assert mass_within(cutoff, dimensions=2) == pytest.approx(ring.sum(), rel=1e-9)


@pytest.mark.parametrize("box_size", [20, 21])
def test_the_image_is_the_density_summed_along_the_line_of_sight(box_size: int) -> None:
    """Along each axis of the volume: sums over voxels are integrals where σ is above a voxel."""
    centres, scales, quaternions, masses = (t.double() for t in gaussians(20, box_size, seed=6))
    model = (0.3 * centres, scales.clamp(0.1, 0.4), quaternions, masses)
    volume = voxelise(*model, box_size, cutoff=7.0)
    along_z, along_x = torch.eye(3), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    images = project(*model, torch.stack([along_z, along_x]), torch.zeros(2, 2), box_size, cutoff=7.0)
    for image, expected in zip(images, (volume.sum(dim=0), volume.sum(dim=2)), strict=True):
        assert torch.linalg.norm(image - expected) < 1e-6 * torch.linalg.norm(expected)


@pytest.mark.parametrize("box_size", [15, 16])
def test_a_whole_shift_moves_the_image(box_size: int) -> None:
    centres, *others = gaussians(20, box_size)
    rotations, shifts = poses(3)
    step = torch.tensor([2.0, -1.0])
    here, there = (project(0.3 * centres, *others, rotations, t, box_size) for t in (shifts, shifts + step))
    inner = (slice(None), slice(3, -3), slice(3, -3))
    difference = there - torch.roll(here, (-1, 2), dims=(1, 2))
    assert torch.linalg.norm(difference[inner]) < 1e-5 * torch.linalg.norm(here)


def test_moving_the_particle_moves_its_image() -> None:
    centres, *others = gaussians(20, 15)
    rotations, shifts = poses(4)
    step = torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64)
    moved = project(centres + step, *others, rotations, shifts, 15)
    expected = project(centres, *others, rotations, shifts + (rotations @ step)[:, :2], 15)
    assert torch.linalg.norm(moved - expected) < 1e-5 * torch.linalg.norm(expected)


def test_turning_particle_and_view_together_changes_nothing() -> None:
    centres, scales, quaternions, masses = (t.double() for t in gaussians(20, 16))
    rotations, shifts = poses(4)
    turn = poses(2, seed=9)[0][1]
    # A rotation's quaternion by its own matrix: w² = (1 + trace)/4.
    w = 0.5 * torch.sqrt(1 + turn.trace())
    v = torch.stack([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / (4 * w)
    scalar, vector = quaternions[:, :1], quaternions[:, 1:]
    product = torch.cat(
        [w * scalar - vector @ v[:, None], w * vector + scalar * v + torch.linalg.cross(v.expand_as(vector), vector)],
        dim=1,
    )
    before = project(centres, scales, quaternions, masses, rotations, shifts, 16, implementation="cpu")
    after = project(centres @ turn.T, scales, product, masses, rotations @ turn.T, shifts, 16, implementation="cpu")
    assert torch.linalg.norm(after - before) < 1e-5 * torch.linalg.norm(before)


def test_turning_the_view_in_its_plane_turns_the_image() -> None:
    model = gaussians(20, 15)
    rotations, shifts = poses(4)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    before = project(*model, rotations, shifts, 15)
    after = project(*model, quarter @ rotations, shifts @ quarter[:2, :2].T, 15)
    # x → y, y → −x: what lay at [y, x] lies at [x, −y].
    expected = torch.flip(before.transpose(1, 2), dims=(2,))
    assert torch.linalg.norm(after - expected) < 1e-5 * torch.linalg.norm(before)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_the_way_back_is_the_adjoint(implementation: str) -> None:
    """⟨Ax, y⟩ = ⟨x, Aᵀy⟩ for the masses x, the adjoint taken at other masses than x."""
    model, view, y = gaussians(50, 16), poses(5), random(5, 16, 16, seed=3)
    x = random(50, seed=4).abs()
    centres, scales, quaternions, others = model
    _, gradients = projected(model, view, 16, y, implementation)
    adjoint = gradients[3] / others.double().exp()
    images, _ = projected((centres, scales, quaternions, torch.log(x)), view, 16, y, implementation)
    assert torch.sum(images * y).item() == pytest.approx(torch.sum(x * adjoint).item(), rel=1e-5)


def analytic_spectra(model: Gaussians, view: Poses, box_size: int) -> Tensor:
    """(B, D, D//2+1) Σ a exp(−2πi k·p − 2π² kᵀSk), p from pixel 0."""
    centres, scales, quaternions, masses = (t.double() for t in model)
    frames = view[0][:, :2]
    ky, kx = torch.meshgrid(torch.fft.fftfreq(box_size), torch.fft.rfftfreq(box_size), indexing="ij")
    k = torch.stack([kx, ky], dim=-1).view(-1, 2).double()
    places = torch.einsum("bij,kj->bki", frames, centres) + view[1][:, None] + box_size // 2
    shapes = torch.einsum("bim,kmn,bjn->bkij", frames, covariances(scales, quaternions), frames)
    exponent = -2j * math.pi * (places @ k.T) - 2 * math.pi**2 * torch.einsum("fi,bkij,fj->bkf", k, shapes, k)
    return (masses.exp()[:, None] * torch.exp(exponent)).sum(dim=1).view(-1, *kx.shape)


def spectral_error(images: Tensor, expected: Tensor, low: float, high: float) -> float:
    """Relative L2 error over low ≤ f < high, cycles per pixel."""
    box_size = images.shape[-1]
    f = torch.hypot(torch.fft.fftfreq(box_size)[:, None], torch.fft.rfftfreq(box_size))
    ring = (f >= low) & (f < high)
    difference = torch.fft.rfft2(images.double())[:, ring] - expected[:, ring]
    return float(torch.linalg.norm(difference) / torch.linalg.norm(expected[:, ring]))


@pytest.mark.parametrize("box_size", [48, 49])
def test_the_transform_is_the_analytic_one(box_size: int) -> None:
    """Wide enough for the grid, and far enough from the edge of the image."""
    centres, _, quaternions, masses = gaussians(30, box_size, seed=8)
    model = (0.4 * centres, torch.log(1.2 + random(30, 3).abs().clamp(0, 0.5)).float(), quaternions, masses)
    view = poses(3)
    images = project(*model, *view, box_size, cutoff=7.0)
    expected = analytic_spectra(model, view, box_size)
    assert spectral_error(images, expected, 0, 0.25) < 1e-5
    assert spectral_error(images, expected, 0.25, 0.4) < 1e-3


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("box_size", [48, 49])
def test_band_limiting_leaves_the_aliases_of_wider_gaussians(box_size: int, sigma: float) -> None:
    """The first alias of a sampled Gaussian is exp(−2π² σ² (1 − 2f)) of it at f."""
    centres, _, quaternions, masses = gaussians(30, box_size, seed=8)
    model = (0.4 * centres, torch.full((30, 3), math.log(sigma)), quaternions, masses)
    view = poses(3)
    expected = analytic_spectra(model, view, box_size)
    for band_limited, variance in ((False, sigma**2), (True, sigma**2 + WIDENING)):
        images = project(*model, *view, box_size, cutoff=5.0, band_limited=band_limited)
        alias = math.exp(-2 * math.pi**2 * variance * (1 - 2 * 0.4))
        assert 0.2 * alias < spectral_error(images, expected, 0.39, 0.41) < alias


@pytest.mark.parametrize(("k", "n_images"), [(20, 2), (20, 0), (0, 2)])
def test_band_limiting_is_widening_and_its_inverse_with_gradients(k: int, n_images: int) -> None:
    model, view, cotangent = gaussians(k, 16), poses(n_images), random(n_images, 16, 16)
    images, gradients = projected(model, view, 16, cotangent, "reference", band_limited=True)
    leaf = model[1].double().requires_grad_()
    others = [t.double() for t in model]
    by_hand = boosted_images(project(others[0], widened(leaf), *others[2:], *view, 16))
    torch.testing.assert_close(images, by_hand.detach())
    torch.testing.assert_close(gradients[1], torch.autograd.grad(by_hand, leaf, cotangent)[0])


_MEMORY = """
import resource, torch
from emsplat.splat import project
images, box_size = 400, 40

def work(k, images):
    r = torch.Generator().manual_seed(0)
    centres = (torch.rand(k, 3, generator=r) - 0.5) * 0.6 * box_size
    model = (centres, torch.zeros(k, 3), torch.randn(k, 4, generator=r), torch.zeros(k))
    leaves = [t.requires_grad_() for t in (*model, torch.eye(3).repeat(images, 1, 1), torch.zeros(images, 2))]
    project(*leaves, box_size).square().sum().backward()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(work(10, 2), work(200, images), work(6000, images))
"""


def test_memory_is_that_of_the_images() -> None:
    """2.4 million pairs of Gaussian and image: one number a pair would be 10 MB, one a pixel a gigabyte."""
    src = Path(__file__).resolve().parents[2] / "src"
    command = [sys.executable, "-c", _MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(src)}, check=True)
    start, few, many = map(int, done.stdout.split())
    assert few - start < 10 * 4 * 400 * 40 * 40
    assert many - few < 1500 * 6000  # some hundred numbers a Gaussian


def test_what_is_no_choice_is_refused() -> None:
    model, (rotations, shifts) = gaussians(1, 8), poses(2)
    with pytest.raises(ValueError, match="implementation"):
        project(*model, rotations, shifts, 8, implementation="abacus")
    with pytest.raises(ValueError, match="cutoff"):
        project(*model, rotations, shifts, 8, cutoff=0.0)
    with pytest.raises(ValueError, match=r"\(B, 3, 3\) and \(B, 2\)"):
        project(*model, rotations, shifts[:1], 8)
    with pytest.raises(ValueError, match="image 1 of the batch"):
        project(*model, rotations, shifts * torch.tensor([[1.0], [math.nan]]), 8)
