"""The likelihood of recorded images, given what the forward model predicts for them.

The noise is Gaussian with a radial spectrum for each optics group; W is the whitening by it. The negative
log-likelihood of an image y is ``½ ‖W (C p − y)‖²`` plus a constant; without its constant part ``½ ‖W y‖²`` it is

    ½ ‖W C p‖² − ⟨W² C y, p⟩

Premultiplied data y′ = C y give it as well: their gradient is ``W² (C² p − y′)``, not that of a squared distance.
Summed over images it is the loss that `statistics` accumulates and `loss.QuadraticLoss` evaluates: in both, the mean of
an image and all frequencies beyond Nyquist's radius have no weight.

As a function of the central slice s, with ``p = c e^{iφ} shift s``, it is ``½ Σ t |s|² − Re Σ b* s`` with the two
half planes of `slice_statistics`. The kernels of `statistics`, of `poses.refine` and of the graphics card evaluate the
same function in ways of their own; the tests compare them with this module in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emsplat.fourier.background import subtract_recorded_background
from emsplat.fourier.cropping import fourier_crop
from emsplat.imaging.forward import ForwardModel, frequency_radii, shift_factors
from emsplat.particles.batches import Images, Rows
from emsplat.particles.table import Particles


@dataclass(frozen=True)
class Recorded:
    """Images as they were recorded, and the noise in them."""

    particles: Particles  # N rows, by which the images are read
    images: Images
    noise: NDArray[np.float64]  # (groups, D//2+1) from `noise_spectra`, of the uncropped images

    def observe(self, rows: Rows, box_size: int) -> Observed:
        """Read these rows, ready for `negative_log_likelihoods` in a working box D′."""
        return observe(self.images.read(rows), self.particles.select(rows), self.noise, box_size)


@dataclass(frozen=True)
class Observed:
    """The data of n images in the units of a working box D′ ≤ D."""

    spectra: Tensor  # (n, D′, D′//2+1) transforms of the images, cropped
    weights: Tensor  # (n, D′, D′//2+1) W², doubled if a sample also stands for its mirror image
    premultiplied: Tensor  # (n,) bool: the spectra hold C y


def observe(
    images: NDArray, particles: Particles, noise: NDArray[np.float64], box_size: int, double: bool = False
) -> Observed:
    """Recorded images, ready for `negative_log_likelihoods`.

    Args:
        images: (n, B, B) images as they are read, perhaps cropped to B ≥ D′; their background is subtracted.
        particles: the n rows of these images.
        noise: (groups, D//2+1) from `noise_spectra`, of the uncropped images.
        box_size: D′ of the working box that the images are cropped to in Fourier space.
        double: whether to work in float64; the images must then be float64 as well.
    """
    # The working grid has larger voxels, so that a slice of its map has smaller values in its own units.
    scale = (box_size / particles.box_size) ** 3
    images = images.copy()
    subtract_recorded_background(images, particles.box_size)
    spectra = torch.from_numpy(fourier_crop(torch.fft.rfft2(torch.from_numpy(images)).numpy(), box_size)) * scale
    numbers, of_image = np.unique(particles.optics_group, return_inverse=True)
    radius, in_volume = frequency_radii([particles.optics[number] for number in numbers], box_size)
    inverse = 1 / noise[numbers]
    inverse[:, 0] = 0.0
    shells = np.arange(noise.shape[1])
    weights: NDArray[np.floating] = np.stack([np.interp(radius, shells, row) for row in inverse])
    weights = (weights if double else weights.astype(np.float32)) / scale**2
    weights *= 2 * np.maximum(radius, in_volume) < box_size
    weights[:, :, 1:] *= 2
    return Observed(spectra, torch.from_numpy(weights[of_image]), torch.from_numpy(particles.premultiplied))


def negative_log_likelihoods(spectra: Tensor, transfer: Tensor, observed: Observed) -> Tensor:
    """(n,) ``½ ‖W C p‖² − ⟨W² C y, p⟩`` of each image.

    Args:
        spectra: (n, D′, D′//2+1) p, from a `ForwardModel`; transfer: the same shape, C.
    """
    premultiplied = observed.premultiplied
    if transfer.requires_grad and premultiplied.any():
        raise ValueError("premultiplied images hold the CTF they were multiplied with: their defocus cannot be refined")
    seen = transfer * spectra
    met = torch.where(premultiplied[:, None, None], spectra, seen)
    power = 0.5 * (seen.real**2 + seen.imag**2)
    overlap = met.real * observed.spectra.real + met.imag * observed.spectra.imag
    return (observed.weights * (power - overlap)).sum(dim=(1, 2))


def slice_statistics(forward: ForwardModel, observed: Observed) -> tuple[Tensor, Tensor]:
    """The statistics of each image about its central slice: ``b = C W² e^{−iφ} y``, centred, and ``t = C² W²``.

    Returns:
        (n, D′, D′//2+1) complex and real; doubled if a sample also stands for its mirror image.
    """
    transfer, premultiplied = forward.transfer, observed.premultiplied[:, None, None]
    # The particle's centre becomes pixel 0, the origin of `central_slices` without a shift.
    centres = forward.shifts + forward.box_size // 2
    along_y, along_x = shift_factors(-centres, forward.box_size)
    b = observed.spectra * along_y.to(observed.spectra.dtype) * along_x.to(observed.spectra.dtype)
    factors, factor_of = forward.phases
    for number, factor in enumerate(factors):
        b[factor_of == number] *= factor.conj()
    b *= torch.where(premultiplied, 1.0, transfer) * observed.weights
    return b, transfer.square() * observed.weights
