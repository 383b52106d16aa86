"""The numba kernels as differentiable functions of torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_PACKED = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
_UNPACKED = ((0, 3, 4), (3, 1, 5), (4, 5, 2))  # the place of each entry of a symmetric matrix among the packed ones


def packed(matrices: Tensor) -> Tensor:
    """(K, 6) xx, yy, zz, xy, xz, yz of symmetric (K, 3, 3) matrices."""
    return torch.stack([matrices[:, i, j] for i, j in _PACKED], dim=1)


def unpacked(entries: Tensor) -> Tensor:
    """(K, 3, 3) symmetric matrices from (K, 6) packed entries."""
    return torch.stack([entries[:, place] for row in _UNPACKED for place in row], dim=1).view(-1, 3, 3)


class CpuSplat(torch.autograd.Function):
    """`reference.splat` by the numba kernels, in float32; the gradient follows from the ten moments."""

    @staticmethod
    def forward(ctx, centres, precisions, peaks, box_size, cutoff):
        from emsplat.splat import cpu

        entries = packed(precisions)
        ctx.save_for_backward(centres, precisions, entries, peaks)
        ctx.cutoff = cutoff
        volume = cpu.splat(
            centres.contiguous().numpy(), entries.numpy(), peaks.float().contiguous().numpy(), box_size, cutoff
        )
        return torch.from_numpy(volume)[:, :, :box_size]

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        from emsplat.splat import cpu

        centres, precisions, entries, peaks = ctx.saved_tensors
        padded = torch.nn.functional.pad(cotangent, (0, cpu.PADDING)).contiguous()
        moments = torch.from_numpy(
            cpu.moments(centres.contiguous().numpy(), entries.numpy(), padded.numpy(), ctx.cutoff)
        ).to(centres.dtype)
        weighted = peaks[:, None] * moments
        d_centres = torch.einsum("kij,kj->ki", precisions, weighted[:, 1:4])
        return d_centres, -0.5 * unpacked(weighted[:, 4:]), moments[:, 0].to(peaks.dtype), None, None


class CpuProjection(torch.autograd.Function):
    """`reference.project` by the numba kernels, from float64 to float32 images. No image is kept for the gradient."""

    @staticmethod
    def forward(ctx, centres, covariances, weights, rotations, origins, box_size, cutoff):
        from emsplat.splat import cpu_projection

        inputs = [t.contiguous() for t in (centres, packed(covariances), weights, rotations, origins)]
        ctx.save_for_backward(*inputs)
        ctx.cutoff = cutoff
        images = cpu_projection.project(*(t.numpy() for t in inputs), box_size, cutoff)
        return torch.from_numpy(images)[:, :, :box_size]

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        from emsplat.splat import cpu, cpu_projection

        padded = torch.nn.functional.pad(cotangent, (0, cpu.PADDING)).contiguous()
        inputs = (t.numpy() for t in (*ctx.saved_tensors, padded))
        of_gaussians, of_images = map(torch.from_numpy, cpu_projection.gradients(*inputs, ctx.cutoff))
        d_frames = of_images[:, :6].view(-1, 2, 3)
        d_rotations = torch.nn.functional.pad(d_frames, (0, 0, 0, 1))  # the third row is the line of sight
        return (
            of_gaussians[:, :3], unpacked(of_gaussians[:, 3:9]), of_gaussians[:, 9], d_rotations, of_images[:, 6:],
            None, None,
        )  # fmt: skip
