"""The definitions of both splats in plain torch. In float64, every kernel is tested against them."""

from __future__ import annotations

import torch
from torch import Tensor

from emsplat.splat.rotations import rotation_of_quaternions

_VALUES_AT_ONCE = 1 << 24


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
    axis = torch.arange(box_size, dtype=centres.dtype, device=centres.device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    voxels = torch.stack([x, y, z], dim=-1).view(-1, 3)
    volume = torch.zeros(box_size**3, dtype=centres.dtype, device=centres.device)
    for chunk in _chunks(len(centres), box_size**3):
        d = voxels[None] - centres[chunk, None]
        m = torch.einsum("kvi,kij,kvj->kv", d, precisions[chunk], d)
        values = peaks[chunk, None] * torch.exp(-0.5 * m)
        volume = volume + torch.where(m <= cutoff**2, values, 0.0).sum(dim=0)
    return volume.view(box_size, box_size, box_size)


def project(
    centres: Tensor,
    covariances: Tensor,
    weights: Tensor,
    rotations: Tensor,
    origins: Tensor,
    box_size: int,
    cutoff: float,
) -> Tensor:
    """Sums of truncated, projected Gaussians ``w / sqrt|S| exp(−½ dᵀ S⁻¹ d)``, S the upper-left 2×2 of ``A Σ Aᵀ``.

    Args:
        centres: (K, 3) x, y, z in pixels from the particle's origin.
        covariances: (K, 3, 3) Σ in px².
        weights: (K,) w, the peak value times sqrt|S|.
        rotations: (B, 3, 3) A.
        origins: (B, 2) x, y of the particle's origin in each image, in pixels from pixel 0.
    Returns:
        (B, D, D) ``[y, x]``; each Gaussian is 0 where its Mahalanobis distance exceeds the cut-off, and everywhere if
        it is not finite or its S not positive definite in the range of float32.
    """
    finite = torch.isfinite(torch.cat([centres, covariances.flatten(1), weights[:, None]], dim=1)).all(dim=1)
    centres = torch.where(finite[:, None], centres, 0.0)
    covariances = torch.where(finite[:, None, None], covariances, 0.0)
    weights = torch.where(finite, weights, 0.0)
    axis = torch.arange(box_size, dtype=centres.dtype, device=centres.device)
    y, x = (a.reshape(-1) for a in torch.meshgrid(axis, axis, indexing="ij"))
    frames = rotations[:, :2]
    images = torch.zeros(len(rotations), box_size**2, dtype=centres.dtype, device=centres.device)
    for chunk in _chunks(len(centres), len(rotations) * box_size**2):
        middle = torch.einsum("bij,kj->bki", frames, centres[chunk]) + origins[:, None]
        s = torch.einsum("bim,kmn,bjn->bkij", frames, covariances[chunk], frames)
        xx, xy, yy = s[..., 0, 0, None], s[..., 0, 1, None], s[..., 1, 1, None]
        determinant = xx * yy - xy * xy
        definite = (yy > 1e-30) & (yy < 1e30) & (determinant > 1e-30 * yy)
        determinant = torch.where(definite, determinant, 1.0)
        dx, dy = x - middle[..., 0, None], y - middle[..., 1, None]
        m = (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) / determinant
        values = weights[chunk, None] / torch.sqrt(determinant) * torch.exp(-0.5 * m)
        images = images + torch.where(definite & (m <= cutoff**2), values, 0.0).sum(dim=1)
    return images.view(-1, box_size, box_size)


def _chunks(n: int, values_of_one: int) -> list[slice]:
    """Slices over n Gaussians. For no Gaussians there is one slice, so that gradients are empty and not absent."""
    at_once = max(1, _VALUES_AT_ONCE // max(1, values_of_one))
    return [slice(first, first + at_once) for first in range(0, max(1, n), at_once)]
