"""The definition of the 3D splat in plain torch; the judge of every kernel (in float64)."""

from __future__ import annotations

import torch
from torch import Tensor

_VOXELS_AT_ONCE = 1 << 24


def rotation_of_quaternions(quaternions: Tensor) -> Tensor:
    """(K, 3, 3) rotation matrices of quaternions (K, 4) w, x, y, z of any non-zero length."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(dim=1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, dim=1).view(-1, 3, 3)


def ellipsoids(log_scales: Tensor, quaternions: Tensor, power: int) -> Tensor:
    """(K, 3, 3) ``R diag(s^power) Rᵀ``: covariances for power 2, precisions for power −2."""
    rotations = rotation_of_quaternions(quaternions)
    return (rotations * torch.exp(power * log_scales.expand(-1, 3))[:, None, :]) @ rotations.transpose(1, 2)


def splat(centres: Tensor, precisions: Tensor, peaks: Tensor, box_size: int, cutoff: float) -> Tensor:
    """Sum of truncated Gaussians on a grid.

    Args:
        centres: (K, 3) x, y, z in voxels from voxel 0.
        precisions: (K, 3, 3) Σ⁻¹ in 1/voxel².
        peaks: (K,) values at the centres.
    Returns:
        (D, D, D) ``[z, y, x]``; each Gaussian is 0 where its Mahalanobis distance exceeds the cut-off.
    """
    axis = torch.arange(box_size, dtype=centres.dtype)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    voxels = torch.stack([x, y, z], dim=-1).view(-1, 3)
    volume = torch.zeros(box_size**3, dtype=centres.dtype)
    at_once = max(1, _VOXELS_AT_ONCE // box_size**3)
    for first in range(0, max(1, len(centres)), at_once):  # once for none: their gradients are empty, not absent
        chunk = slice(first, first + at_once)
        d = voxels[None] - centres[chunk, None]
        m = torch.einsum("kvi,kij,kvj->kv", d, precisions[chunk], d)
        values = peaks[chunk, None] * torch.exp(-0.5 * m)
        volume = volume + torch.where(m <= cutoff**2, values, 0.0).sum(dim=0)
    return volume.view(box_size, box_size, box_size)
