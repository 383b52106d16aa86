"""The two splats, Gaussians → density on a grid and Gaussians → images, as differentiable functions without state.

``V(r) = Σ a_k N(r; μ_k, Σ_k)``, ``Σ = R(q) diag(s²) R(q)ᵀ``; an image is the integral of V along the line of sight, a
sum of 2D Gaussians of the same masses. Both are truncated per voxel or pixel at a Mahalanobis radius c, in the
same way forward and backward, and rescaled by the mass that is kept.

- ``reference``: the definitions in plain torch, against which every kernel is tested
- ``cpu``, ``cpu_projection``, ``cpu_shapes``: numba kernels; ``functions``: these kernels as functions of torch
- ``gpu``, ``gpu_projection``: Triton kernels; ``functions_gpu``: these kernels as functions of torch
- ``rotations``: rotation matrices; ``bandlimit``: Gaussians that are narrower than a grid can sample
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emsplat.splat import bandlimit, reference
from emsplat.splat.functions import CpuProjection, CpuSplat
from emsplat.splat.functions_gpu import GpuProjection, GpuSplat
from emsplat.splat.rotations import rotation_of_quaternions, turned

__all__ = ["CUTOFF", "covariances", "mass_within", "project", "rotation_of_quaternions", "turned", "voxelise"]

CUTOFF = 3.5


def mass_within(cutoff: float, dimensions: int = 3) -> float:
    """Share of a Gaussian's mass within the Mahalanobis radius c.

    ``erf(c/√2) − √(2/π) c exp(−c²/2)`` in three dimensions, ``1 − exp(−c²/2)`` in two.
    """
    if dimensions == 2:
        return -math.expm1(-(cutoff**2) / 2)
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
        implementation: "reference" (plain torch, any dtype), "cpu" (numba, float32), "gpu" (Triton, float32), or
            "auto": "reference" in float64, else the kernels of the tensors' device.
    Returns:
        (D, D, D) density ``[z, y, x]``, of the inputs' dtype.
    """
    how = _implementation(implementation, centres, cutoff)
    log_volume = 1.5 * math.log(2 * math.pi) + math.log(mass_within(cutoff)) + log_scales.expand(-1, 3).sum(dim=1)
    peaks = torch.exp(log_masses - log_volume)
    if how == "reference":
        precisions = reference.ellipsoids(log_scales, quaternions, power=-2)
        return reference.splat(centres + box_size // 2, precisions, peaks, box_size, cutoff)
    # The shapes are float64, because rounding the precisions of a thin Gaussian to float32 would bend it.
    if how == "cpu":
        return CpuSplat.apply(centres, log_scales, quaternions, peaks, box_size, cutoff).to(centres.dtype)
    precisions = reference.ellipsoids(log_scales.double(), quaternions.double(), power=-2)
    places = centres.double() + box_size // 2
    return GpuSplat.apply(places, precisions, peaks, _by_size(log_scales), box_size, cutoff).to(centres.dtype)


def project(
    centres: Tensor,
    log_scales: Tensor,
    quaternions: Tensor,
    log_masses: Tensor,
    rotations: Tensor,
    shifts: Tensor,
    box_size: int,
    cutoff: float = CUTOFF,
    implementation: str = "auto",
    band_limited: bool = False,
) -> Tensor:
    """Images of K Gaussians in B poses, differentiable in all six tensors. It takes no memory beyond the images.

    For gradients with respect to poses as tangent vectors, use ``project(..., turned(rotations, tangents), ...)``. The
    gradient with respect to `rotations` itself treats their first two rows as free numbers.

    Args:
        centres, log_scales, quaternions, log_masses: as `voxelise` takes them; voxels are pixels.
        rotations: (B, 3, 3) A, ``x_image = A x_volume``; or `aberrations.slice_matrices`, which magnify as well.
        shifts: (B, 2) x, y in pixels: the particle's origin lies at pixel ``D // 2 + shift``. RELION's origin is the
            shift that centres an image: ``shift = −origin / pixel size``.
        box_size: D.
        cutoff: Mahalanobis radius c of the truncation.
        implementation: as for `voxelise`.
        band_limited: keep only what a grid of pixels can hold of the Gaussians. They are splatted with Σ + κI, and the
            widening is undone in Fourier space (`bandlimit`), at the price of two FFTs for each image. This needs true
            rotations, and a cut-off of 5, because the inverse amplifies what truncation leaves out.
    Returns:
        (B, D, D) images ``[y, x]``, of the centres' dtype.
    """
    how = _implementation(implementation, centres, cutoff)
    if rotations.shape != (len(rotations), 3, 3) or shifts.shape != (len(rotations), 2):
        raise ValueError(f"rotations {(*rotations.shape,)} and shifts {(*shifts.shape,)} must be (B, 3, 3) and (B, 2)")
    rotations, shifts = rotations.to(centres.device), shifts.to(centres.device)
    if not _in_a_cuda_graph(centres):  # whose values the host does not know; its poses were checked before
        bad = ~torch.isfinite(torch.cat([rotations.flatten(1), shifts.to(rotations.dtype)], dim=1)).all(dim=1)
        if bad.any():
            raise ValueError(f"the rotation or shift of image {int(bad.nonzero()[0])} of the batch is not finite")
    if band_limited:
        log_scales = bandlimit.widened(log_scales)
    # The kernels take float64, because rounding the shapes of a thin Gaussian to float32 would bend it.
    kind = centres.dtype if how == "reference" else torch.float64
    shapes = reference.ellipsoids(log_scales.to(kind), quaternions.to(kind), power=2)
    weights = torch.exp(log_masses.to(kind)) / (2 * math.pi * mass_within(cutoff, dimensions=2))
    gaussians, poses = (centres.to(kind), shapes, weights), (rotations.to(kind), shifts.to(kind) + box_size // 2)
    if how == "reference":
        images = reference.project(*gaussians, *poses, box_size, cutoff)
    elif how == "gpu":
        images = GpuProjection.apply(*gaussians, *poses, _by_size(log_scales), box_size, cutoff)
    else:
        images = CpuProjection.apply(*gaussians, *poses, box_size, cutoff)
    images = images.to(centres.dtype)
    return bandlimit.boosted_images(images) if band_limited else images


def _implementation(asked: str, centres: Tensor, cutoff: float) -> str:
    """The implementation to use: "reference", "cpu" or "gpu"."""
    if not 0 < cutoff <= 12:
        raise ValueError(f"cutoff {cutoff} is not a useful Mahalanobis radius; give one above 0 and at most 12")
    if asked not in ("auto", "reference", "cpu", "gpu"):
        raise ValueError(f"implementation {asked!r} is unknown; use 'auto', 'reference', 'cpu' or 'gpu'")
    if asked == "cpu" and centres.device.type != "cpu":
        raise ValueError(
            f"implementation 'cpu' takes tensors on the CPU, and these are on {centres.device}; use 'auto'"
        )
    if asked != "auto":
        return asked
    if centres.dtype == torch.float64:
        return "reference"
    return "gpu" if centres.device.type == "cuda" else "cpu"


def _by_size(log_scales: Tensor) -> Tensor:
    """(K,) order from small to large, because a program of the graphics card takes as long as its largest Gaussian."""
    return torch.argsort(log_scales.detach().amax(dim=1), stable=True)


def _in_a_cuda_graph(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
