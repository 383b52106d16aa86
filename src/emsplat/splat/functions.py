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
    """`reference.splat` by the numba kernels, in float32, as a function of what the precisions are made of.

    The peaks are arguments of their own: the gradient with respect to the scales is that at constant peaks.
    """

    @staticmethod
    def forward(ctx, centres, log_scales, quaternions, peaks, box_size, cutoff):
        from emsplat.splat import cpu, cpu_shapes

        places = (centres.double() + box_size // 2).contiguous()
        shapes = log_scales.double().expand(-1, 3).contiguous(), quaternions.double().contiguous()
        entries = torch.from_numpy(cpu_shapes.precisions(*(t.numpy() for t in shapes)))
        ctx.save_for_backward(places, entries, *shapes, peaks)
        ctx.cutoff, ctx.isotropic = cutoff, log_scales.shape[1] == 1
        volume = cpu.splat(places.numpy(), entries.numpy(), peaks.float().contiguous().numpy(), box_size, cutoff)
        return torch.from_numpy(volume)[:, :, :box_size]

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        from emsplat.splat import cpu, cpu_shapes

        places, entries, log_scales, quaternions, peaks = ctx.saved_tensors
        padded = torch.nn.functional.pad(cotangent, (0, cpu.PADDING)).contiguous()
        moments = cpu.moments(places.numpy(), entries.numpy(), padded.numpy(), ctx.cutoff)
        inputs = (peaks.double(), entries, log_scales, quaternions)
        found = torch.from_numpy(cpu_shapes.gradients(moments, *(t.numpy() for t in inputs))).to(peaks.dtype)
        of_scales = found[:, 3:6].sum(dim=1, keepdim=True) if ctx.isotropic else found[:, 3:6]
        of_peaks = torch.from_numpy(moments[:, 0].copy()).to(peaks.dtype)
        return found[:, :3], of_scales, found[:, 6:], of_peaks, None, None


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
