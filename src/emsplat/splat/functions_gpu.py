"""The Triton kernels as differentiable functions of torch; the counterparts of `functions`."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

import torch
from torch.autograd.function import once_differentiable

from emsplat.errors import InputError
from emsplat.splat.functions import packed, unpacked


def kernels(name: str, device: torch.device) -> ModuleType:
    """A module of Triton kernels, which is loaded when it is first used.

    Raises:
        InputError: Triton is not installed.
        ValueError: the tensors are on another device, where only Triton's interpreter could reach them.
    """
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"implementation 'gpu' takes tensors on a CUDA device, and these are on {device}; use 'auto'")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("triton"):
            raise
        raise InputError(
            "Triton, which compiles the kernels for a graphics card, is not installed; type pip install "
            "'emsplat[gpu]', or work on the CPU"
        ) from error


class GpuSplat(torch.autograd.Function):
    """`reference.splat` by the Triton kernels, from float64 geometry to a float32 volume."""

    @staticmethod
    def forward(ctx, centres, precisions, peaks, order, box_size, cutoff):
        gpu = kernels("emsplat.splat.gpu", centres.device)
        inputs = [t.contiguous() for t in (centres, packed(precisions), peaks.float(), order)]
        ctx.save_for_backward(*inputs)
        ctx.cutoff, ctx.of_peaks = float(cutoff), peaks.dtype
        with torch.cuda.device_of(centres):
            return gpu.splat(*inputs, box_size, ctx.cutoff)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        gpu = kernels("emsplat.splat.gpu", cotangent.device)
        with torch.cuda.device_of(cotangent):
            found = gpu.gradients(*ctx.saved_tensors, cotangent.contiguous(), ctx.cutoff)
        return found[:, :3], unpacked(found[:, 3:9]), found[:, 9].to(ctx.of_peaks), None, None, None


class GpuProjection(torch.autograd.Function):
    """`reference.project` by the Triton kernels, from float64 to float32 images. No image is kept for the gradient."""

    @staticmethod
    def forward(ctx, centres, covariances, weights, rotations, origins, order, box_size, cutoff):
        gpu = kernels("emsplat.splat.gpu_projection", centres.device)
        inputs = [t.contiguous() for t in (centres, packed(covariances), weights, order, rotations, origins)]
        ctx.save_for_backward(*inputs)
        ctx.cutoff = float(cutoff)  # as a float, because Triton compiles again for each whole number
        with torch.cuda.device_of(centres):
            return gpu.project(*inputs, box_size, ctx.cutoff)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        gpu = kernels("emsplat.splat.gpu_projection", cotangent.device)
        with torch.cuda.device_of(cotangent):
            of_gaussians, of_images = gpu.gradients(*ctx.saved_tensors, cotangent.contiguous(), ctx.cutoff)
        d_rotations = torch.nn.functional.pad(of_images[:, :6].view(-1, 2, 3), (0, 0, 0, 1))
        return (
            of_gaussians[:, :3], unpacked(of_gaussians[:, 3:9]), of_gaussians[:, 9], d_rotations, of_images[:, 6:],
            None, None, None,
        )  # fmt: skip
