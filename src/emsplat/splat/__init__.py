"""The 3D splat: Gaussians → density on a grid, one differentiable op, one dispatch.

``V(r) = Σ a_k N(r; μ_k, Σ_k)``, ``Σ = R(q) diag(s²) R(q)ᵀ``, truncated per voxel at a Mahalanobis radius c, the same
forward and backward, and rescaled by the mass kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emsplat.splat import reference
from emsplat.splat.reference import rotation_of_quaternions

__all__ = ["CUTOFF", "covariances", "mass_within", "rotation_of_quaternions", "voxelise"]

CUTOFF = 3.5


def mass_within(cutoff: float) -> float:
    """Share of a 3D Gaussian's mass within the Mahalanobis radius c: ``erf(c/√2) − √(2/π) c exp(−c²/2)``."""
    return math.erf(cutoff / math.sqrt(2)) - math.sqrt(2 / math.pi) * cutoff * math.exp(-(cutoff**2) / 2)


def covariances(log_scales: Tensor, quaternions: Tensor) -> Tensor:
    """(K, 3, 3) Σ of log_scales (K, 3) or (K, 1) and quaternions (K, 4) w, x, y, z of any length."""
    return reference.ellipsoids(log_scales, quaternions, power=2)


def voxelise(
    centres: Tensor,
    log_scales: Tensor,
    quaternions: Tensor,
    log_masses: Tensor,
    box_size: int,
    cutoff: float = CUTOFF,
    implementation: str = "auto",
) -> Tensor:
    """Density of K Gaussians on a grid, differentiable in all four tensors.

    Args:
        centres: (K, 3) x, y, z in voxels from the box centre, voxel ``D // 2``.
        log_scales: (K, 3), or (K, 1) for isotropic Gaussians; log of σ in voxels.
        quaternions: (K, 4) w, x, y, z; normalised here.
        log_masses: (K,) log of the integral.
        box_size: D.
        cutoff: Mahalanobis radius c of the truncation.
        implementation: "reference" (plain torch, any dtype), "cpu" (numba, float32), or "auto": "reference" in
            float64, else "cpu".
    Returns:
        (D, D, D) density ``[z, y, x]``, of the inputs' dtype.
    """
    if not 0 < cutoff <= 12:
        raise ValueError(f"cutoff {cutoff} is no Mahalanobis radius of use; give one above 0, at most 12")
    log_volume = 1.5 * math.log(2 * math.pi) + math.log(mass_within(cutoff)) + log_scales.expand(-1, 3).sum(dim=1)
    peaks = torch.exp(log_masses - log_volume)
    if implementation == "auto":
        implementation = "reference" if centres.dtype == torch.float64 else "cpu"
    if implementation == "reference":
        precisions = reference.ellipsoids(log_scales, quaternions, power=-2)
        return reference.splat(centres + box_size // 2, precisions, peaks, box_size, cutoff)
    if implementation == "cpu":
        # The shapes in float64: rounding the precisions of a thin Gaussian to float32 would bend it.
        precisions = reference.ellipsoids(log_scales.double(), quaternions.double(), power=-2)
        volume = _CpuSplat.apply(centres.double() + box_size // 2, precisions, peaks, box_size, cutoff)
        return volume.to(centres.dtype)
    raise ValueError(f"implementation {implementation!r} is unknown; use 'auto', 'reference' or 'cpu'")


class _CpuSplat(torch.autograd.Function):
    """`reference.splat` by the numba kernels, in float32; the gradient follows from the ten moments."""

    @staticmethod
    def forward(ctx, centres, precisions, peaks, box_size, cutoff):
        from emsplat.splat import cpu

        packed = torch.stack([precisions[:, i, j] for i, j in _PACKED], dim=1)
        ctx.save_for_backward(centres, precisions, packed, peaks)
        ctx.cutoff = cutoff
        volume = cpu.splat(
            centres.contiguous().numpy(), packed.numpy(), peaks.float().contiguous().numpy(), box_size, cutoff
        )
        return torch.from_numpy(volume)[:, :, :box_size]

    @staticmethod
    def backward(ctx, cotangent):
        from emsplat.splat import cpu

        centres, precisions, packed, peaks = ctx.saved_tensors
        padded = torch.nn.functional.pad(cotangent, (0, cpu.PADDING)).contiguous()
        moments = torch.from_numpy(
            cpu.moments(centres.contiguous().numpy(), packed.numpy(), padded.numpy(), ctx.cutoff)
        ).to(centres.dtype)
        weighted = peaks[:, None] * moments
        d_centres = torch.einsum("kij,kj->ki", precisions, weighted[:, 1:4])
        second = torch.stack([weighted[:, _SECOND[i][j]] for i in range(3) for j in range(3)], dim=1)
        return d_centres, -0.5 * second.view(-1, 3, 3), moments[:, 0].to(peaks.dtype), None, None


_PACKED = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
_SECOND = ((4, 7, 8), (7, 5, 9), (8, 9, 6))  # columns of the moments that hold dx², dx dy, ...
