"""Both splats with their gradients, by any implementation on any device, and how alike two of them must be."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clouds import NAMES, Gaussians
from emsplat.conventions import rotation_matrices
from emsplat.splat import project, voxelise

POSE_NAMES = ("rotations", "shifts")
Poses = tuple[Tensor, Tensor]
Found = tuple[Tensor, list[Tensor]]  # images or a volume, and the gradients by all inputs


def poses(n: int, seed: int = 0) -> Poses:
    """The first one looks along z at the middle of a pixel; float64."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-180, 180, (n, 3))
    shifts = rng.uniform(-2, 2, (n, 2))
    angles[:1], shifts[:1] = 0, 0
    return torch.tensor(rotation_matrices(angles)), torch.tensor(shifts)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projected(
    model: Gaussians,
    view: Poses,
    box_size: int,
    cotangent: Tensor,
    implementation: str,
    device: str = "cpu",
    **options,
) -> Found:
    """Images and the gradients by all six tensors, in float64 by the reference, in float32 by the kernels."""
    dtype = torch.float64 if implementation == "reference" else torch.float32
    leaves = [t.to(device, dtype, copy=True).requires_grad_() for t in model]
    leaves += [t.to(device, copy=True).requires_grad_() for t in view]
    images = project(*leaves, box_size, implementation=implementation, **options)
    assert images.dtype == dtype
    assert images.shape == (len(view[0]), box_size, box_size)
    return _with_gradients(images, leaves, cotangent)


def voxelised(
    model: Gaussians, box_size: int, cotangent: Tensor, implementation: str, device: str = "cpu", **options
) -> Found:
    """The volume and the gradients by all four tensors, in float64 by the reference, in float32 by the kernels."""
    dtype = torch.float64 if implementation == "reference" else torch.float32
    leaves = [t.to(device, dtype, copy=True).requires_grad_() for t in model]
    volume = voxelise(*leaves, box_size, implementation=implementation, **options)
    assert volume.dtype == dtype
    assert volume.shape == (box_size,) * 3
    return _with_gradients(volume, leaves, cotangent)


def _with_gradients(values: Tensor, leaves: list[Tensor], cotangent: Tensor) -> Found:
    assert values.device == leaves[0].device
    gradients = torch.autograd.grad(values, leaves, cotangent.to(values))
    return values.detach().double().cpu(), [g.double().cpu() for g in gradients]


def assert_alike(got: Found, expected: Found, round_ones: bool = False) -> None:
    """Relative L2 1e-5 of the values, 1e-4 of the gradients with a cosine of 0.99999.

    A round Gaussian has no gradient by its orientation; what is left of it is rounding.
    """
    assert torch.linalg.norm(got[0] - expected[0]) <= 1e-5 * torch.linalg.norm(expected[0])
    for name, g, e in zip(NAMES + POSE_NAMES, got[1], expected[1], strict=False):
        assert g.shape == e.shape
        of_rounding = round_ones and name == "quaternions"
        scale = torch.linalg.norm(expected[1][1]) if of_rounding else torch.linalg.norm(e)
        assert torch.linalg.norm(g - e) <= 1e-4 * scale, name
        if scale > 0 and not of_rounding:
            assert torch.sum(g * e) >= 0.99999 * torch.linalg.norm(g) * torch.linalg.norm(e), name
    assert len(got[1]) == len(expected[1])
