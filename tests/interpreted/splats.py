"""The splatting kernels, on a card or by Triton's interpreter, against the reference in float64.

``tests/statistics/test_accumulate_gpu.py`` runs this file in a process of its own, because TRITON_INTERPRET must be set
before Triton is imported. The interpreter is slow, so it is given few Gaussians and small boxes.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from clouds import CASES, ROUND, Gaussians, box_of, gaussians
from emsplat.splat import gpu_projection, project, voxelise
from parity import Poses, assert_alike, poses, projected, random, voxelised

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
N = {2: 36, 3: 20} if INTERPRETED else {2: 60, 3: 60}  # by dimensions: a full program and some lanes of the next
LARGEST = {2: 24, 3: 9} if INTERPRETED else {2: 41, 3: 41}  # box, by dimensions
# Cases that are no different from others in boxes as small as the interpreter's.
ALIKE = {2: ("box 16",), 3: ("box 8", "box 16", "box 24")} if INTERPRETED else {2: (), 3: ()}
on_a_card = pytest.mark.skipif(INTERPRETED, reason="only a card has memory, streams and graphs")


def some_of(case: str, dimensions: int) -> tuple[Gaussians, int]:
    return tuple(t[: N[dimensions]] for t in CASES[case]), min(box_of(case), LARGEST[dimensions])  # type: ignore[return-value]


def both_projected(model: Gaussians, view: Poses, box_size: int, **options) -> None:
    """Asserts that the kernels' images and gradients are the reference's."""
    cotangent = random(len(view[0]), box_size, box_size, seed=1)
    got = projected(model, view, box_size, cotangent, "gpu", DEVICE, **options)
    assert_alike(got, projected(model, view, box_size, cotangent, "reference", **options))


@pytest.mark.parametrize("n_images", [0, 2])
@pytest.mark.parametrize("case", [case for case in CASES if case not in ALIKE[2]])
def test_project_against_the_reference(case: str, n_images: int) -> None:
    model, box_size = some_of(case, 2)
    cotangent = random(n_images, box_size, box_size, seed=1)
    got = projected(model, poses(n_images), box_size, cotangent, "gpu", DEVICE)
    expected = projected(model, poses(n_images), box_size, cotangent, "reference")
    assert_alike(got, expected, case in ROUND)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ALIKE[3]])
def test_voxelise_against_the_reference(case: str) -> None:
    model, box_size = some_of(case, 3)
    cotangent = random(box_size, box_size, box_size, seed=1)
    got = voxelised(model, box_size, cotangent, "gpu", DEVICE)
    assert_alike(got, voxelised(model, box_size, cotangent, "reference"), case in ROUND)


@pytest.mark.parametrize("cutoff", [2.0, 5.0])
def test_other_cutoffs(cutoff: float) -> None:
    model = gaussians(N[3], 9, seed=3)
    both_projected(model, poses(2), 9, cutoff=cutoff)
    cotangent = random(9, 9, 9, seed=1)
    got = voxelised(model, 9, cotangent, "gpu", DEVICE, cutoff=cutoff)
    assert_alike(got, voxelised(model, 9, cotangent, "reference", cutoff=cutoff))


def test_band_limited() -> None:
    both_projected(gaussians(N[2], 16), poses(2), 16, cutoff=5.0, band_limited=True)


def test_views_that_magnify() -> None:
    rotations, shifts = poses(2)
    both_projected(gaussians(N[2], 16), (rotations * torch.tensor([1.1, 0.95, 1.0])[:, None], shifts), 16)


def test_images_taken_one_and_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the scratch memory holds: whatever that is, images and gradients are the same."""
    for images, room in ((3, 1), (5, 2 * N[3] * 60)):
        monkeypatch.setattr(gpu_projection, "_SCRATCH_BYTES", room)
        both_projected(gaussians(N[3], 5), poses(images), 5)


def test_far_from_the_middle_of_a_large_image() -> None:
    """Where a place in pixels leaves float32 few digits for the way to the next one. Time goes by footprints."""
    both_projected(gaussians(16, 300), poses(2), 300)


def with_absurd_parameters() -> tuple[Gaussians, Tensor]:
    """Ten good Gaussians among eighteen with one bad number each, and where the good ones are."""
    good = torch.arange(28) % 3 == 0
    model = [t.clone() for t in gaussians(28, 8)]
    bad = [(name, value) for name in range(3) for value in (math.nan, math.inf, -math.inf, 1e30, -1e30, 6e18)]
    for place, (name, value) in zip(torch.nonzero(~good)[:, 0], bad, strict=True):
        model[name][place] = value
        if name == 2:  # a long quaternion is as good as any
            model[0][place] = math.nan
    return tuple(model), good  # type: ignore[return-value]


def test_gaussians_with_absurd_parameters_harm_no_other() -> None:
    """Nothing written outside, nothing of them where the others are, nor in the poses' gradients."""
    model, good = with_absurd_parameters()
    rest = tuple(t[good] for t in model)
    cotangent = random(2, 8, 8)
    images, found = projected(model, poses(2), 8, cotangent, "gpu", DEVICE)
    assert_alike(
        (images, [g[good] for g in found[:4]] + found[4:]), projected(rest, poses(2), 8, cotangent, "gpu", DEVICE)
    )
    cotangent = random(8, 8, 8)
    volume, found = voxelised(model, 8, cotangent, "gpu", DEVICE)
    assert_alike((volume, [g[good] for g in found]), voxelised(rest, 8, cotangent, "gpu", DEVICE))


def test_what_has_no_extent_adds_nothing() -> None:
    """A line, a plane, a point: where the shadow has no area, there is no image and no gradient, and no NaN."""
    scales = torch.tensor([[-math.inf, -math.inf, 1.0], [-math.inf, 1.0, 1.0], [-50.0, -50.0, -50.0]])
    model = (torch.zeros(3, 3), scales, torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(3, 4), torch.zeros(3))
    edge_on = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    view = (torch.stack([torch.eye(3), edge_on]).double(), torch.zeros(2, 2).double())
    images, found = projected(model, view, 9, random(2, 9, 9), "gpu", DEVICE)
    assert not images.any()
    assert not any(g.any() for g in found)  # NaN is any


def test_a_cotangent_without_memory_of_its_own() -> None:
    """What the gradient of a sum is: one number, spread."""
    leaves = [t.to(DEVICE, copy=True).requires_grad_() for t in gaussians(N[3], 8)]
    view = [t.to(DEVICE) for t in poses(2)]
    for values in (voxelise(*leaves, 8, implementation="gpu"), project(*leaves, *view, 8, implementation="gpu")):
        spread = torch.autograd.grad(values.sum(), leaves, retain_graph=True)
        dense = torch.autograd.grad(values, leaves, torch.ones_like(values))
        for one, other in zip(spread, dense, strict=True):
            assert torch.equal(one, other)  # the way back has a fixed order


def cloud_on_the_card(n: int, box_size: int) -> list[Tensor]:
    centres, scales, quaternions, masses = gaussians(n, box_size)
    return [t.cuda().requires_grad_() for t in (0.5 * centres, 0.2 * (scales - 0.3), quaternions, masses)]


@on_a_card
def test_memory_is_bounded() -> None:
    """Beyond the images, the cotangent and the gradients: under 380 MB for 30,000 Gaussians and 256²."""
    leaves = cloud_on_the_card(30_000, 256)
    view = [t.cuda().requires_grad_() for t in poses(200)]
    cotangent = torch.ones(200, 256, 256, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    images = project(*leaves, *view, 256)
    torch.autograd.grad(images, leaves + view, cotangent)
    assert torch.cuda.max_memory_allocated() - before - images.nbytes < 380e6


@on_a_card
def test_a_graph_holds_a_whole_step() -> None:
    """Nothing is asked of the host: what a CUDA graph repeats is what the kernels give."""
    leaves = cloud_on_the_card(1000, 32)
    view = [t.cuda() for t in poses(3)]

    def step() -> list[Tensor]:
        values = (voxelise(*leaves, 32).square().sum(), project(*leaves, *view, 32).square().sum())
        return list(torch.autograd.grad(sum(values), leaves))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    for g, e in zip(found, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5 * float(e.abs().max()))
