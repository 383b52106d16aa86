"""Splatting of Gaussians that a grid cannot sample: Σ + κI on the grid, and the inverse widening in Fourier space.

A sampled Gaussian narrower than about 0.8 voxels aliases. If it is splatted with its covariance widened by κ, and its
transform is multiplied by ``exp(+2π²κ f²)`` for f < ½, the result is the band-limited Gaussian, however narrow it is.
In a quadratic loss the factor is applied to the statistics once, so that the fit pays nothing for it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

WIDENING = 0.5  # κ in voxels²: the sharpest splat has σ = 0.71 voxels


def widened(log_scales: Tensor) -> Tensor:
    """The logarithm of sqrt(σ² + κ), for log σ in voxels."""
    return 0.5 * torch.log(torch.exp(2 * log_scales) + WIDENING)


def narrowed(log_scales: Tensor) -> Tensor:
    """The inverse of `widened`; σ² below 1e-4 voxels² is raised to it."""
    return 0.5 * torch.log((torch.exp(2 * log_scales) - WIDENING).clamp_min(1e-4))


def boost(period: int, dimensions: int = 3) -> NDArray[np.float32]:
    """(n, n, n//2+1) factor exp(2π²κ f²) on the half spectrum of a volume, or (n, n//2+1) on that of an image.

    It is constant beyond f = ½, where images contain no information.
    """
    square = np.square(scipy.fft.fftfreq(period)).astype(np.float32)
    squared = square[:, None] + np.square(scipy.fft.rfftfreq(period)).astype(np.float32)
    if dimensions == 3:
        squared = square[:, None, None] + squared
    np.minimum(squared, np.float32(0.25), out=squared)
    squared *= np.float32(2 * np.pi**2 * WIDENING)
    return np.exp(squared, out=squared)


def boosted(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """The (D, D, D) volume with its transform multiplied by `boost`."""
    return scipy.fft.irfftn(scipy.fft.rfftn(volume) * boost(len(volume)), s=volume.shape)


def boosted_images(images: Tensor) -> Tensor:
    """(B, D, D) images with their transforms multiplied by `boost`; differentiable."""
    if len(images) == 0:
        return images  # the FFT refuses an empty batch
    box_size = images.shape[-1]
    factor = _boost_on(box_size, images.device)
    return torch.fft.irfft2(torch.fft.rfft2(images) * factor, s=(box_size, box_size))


@lru_cache(maxsize=4)
def _boost_on(box_size: int, device: torch.device) -> Tensor:
    """The factor for images, which is sent to a device once."""
    return torch.from_numpy(boost(box_size, dimensions=2)).to(device)
