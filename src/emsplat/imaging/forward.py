"""From projections to the images a microscope would record, and how far the recorded ones are from them.

In Fourier space an image is ``y = c · C · e^{iφ} · shift · P V`` + noise, with the contrast c of the image, the CTF C
(envelopes included), the antisymmetric aberrations φ and the projection P V. With W the whitening by the noise
spectrum of the optics group, the misfit of an image is ``½ ‖W (C p − y)‖²``, p being all that stands right of C;
without its constant ``½ ‖W y‖²`` it is

    ½ ‖W C p‖² − ⟨W² C y, p⟩

which premultiplied data y′ = C y give as well: their gradient is ``W² (C² p − y′)``, not that of a squared distance.
Summed over images it is the loss that `statistics` gathers and `loss.QuadraticLoss` evaluates: the mean of an image and
what lies beyond Nyquist's radius weigh nothing here and there.

Everything is differentiable with respect to projections, contrasts, shifts and defocus. Half planes have ky in fft
order and kx from 0; a projection's and an image's origin is pixel 0, the particle's place shows in the phases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from emsplat.conventions import electron_wavelength_in_angstroms
from emsplat.fourier.cropping import fourier_crop
from emsplat.fourier.transforms import transforms_of
from emsplat.imaging.aberrations import antisymmetric_factors
from emsplat.imaging.ctf import ctf
from emsplat.particles.table import OpticsGroup, Particles
from emsplat.splat.bandlimit import WIDENING


@dataclass(frozen=True)
class Observed:
    """What n images say, in the units of a working box D′ ≤ D."""

    spectra: Tensor  # (n, D′, D′//2+1) complex64 transforms of the images, cropped
    weights: Tensor  # (n, D′, D′//2+1) W², twice that where a sample stands for its mirror image too
    premultiplied: Tensor  # (n,) bool: the spectra hold C y


def observe(images: NDArray[np.float32], particles: Particles, noise: NDArray[np.float64], box_size: int) -> Observed:
    """Recorded images, ready for `misfits`.

    Args:
        images: (n, B, B) as they are read, cropped to B ≥ D′ or not; their mean does not matter.
        particles: the same n rows.
        noise: (groups, D//2+1) from `noise_spectra`, of the uncropped images.
        box_size: D′ of the working box that the images are cropped to in Fourier space.
    """
    # A slice of the working grid's map, whose voxels are larger, is smaller in its own units.
    scale = (box_size / particles.box_size) ** 3
    spectra = torch.from_numpy(fourier_crop(transforms_of(images), box_size)) * scale
    numbers, groups, of_image = _groups(particles)
    radius, in_volume = _radii(groups, box_size)
    inverse = 1 / noise[numbers]
    inverse[:, 0] = 0.0
    shells = np.arange(noise.shape[1])
    weights = np.array([np.interp(radius, shells, row) for row in inverse], dtype=np.float32) / scale**2
    weights *= 2 * np.maximum(radius, in_volume) < box_size
    weights[:, :, 1:] *= 2
    premultiplied = np.array([group.premultiplied for group in groups])
    return Observed(spectra, torch.from_numpy(weights[of_image]), torch.from_numpy(premultiplied[of_image]))


def misfits(spectra: Tensor, transfer: Tensor, observed: Observed) -> Tensor:
    """(n,) ``½ ‖W C p‖² − ⟨W² C y, p⟩`` of each image.

    Args:
        spectra: (n, D′, D′//2+1) p, from `image_spectra`; transfer: the same shape, C.
    """
    premultiplied = observed.premultiplied
    if transfer.requires_grad and premultiplied.any():
        raise ValueError("premultiplied images hold the CTF they were multiplied with: their defocus cannot be refined")
    seen = transfer * spectra
    met = torch.where(premultiplied[:, None, None], spectra, seen)
    power = 0.5 * (seen.real**2 + seen.imag**2)
    overlap = met.real * observed.spectra.real + met.imag * observed.spectra.imag
    return (observed.weights * (power - overlap)).sum(dim=(1, 2))


def image_spectra(
    projections: Tensor, factors: Tensor, contrasts: Tensor | None = None, shifts: Tensor | None = None
) -> Tensor:
    """(n, D, D//2+1) transforms p of the images before the CTF.

    Args:
        projections: (n, D, D) from `splat.project`.
        factors: from `projection_factors`.
        contrasts: (n,) each image's; 1 if absent.
        shifts: (n, 2) x, y in pixels, beyond what the projections were shifted by; around the edges of the image.
    """
    spectra = torch.fft.rfft2(projections) * factors
    if contrasts is not None:
        spectra = spectra * contrasts[:, None, None]
    if shifts is not None:
        box_size = projections.shape[-1]
        x, y = (-2j * torch.pi * s[:, None] for s in shifts.to(projections.dtype).unbind(dim=1))
        along_y = torch.exp(y * torch.fft.fftfreq(box_size))
        along_x = torch.exp(x * torch.fft.rfftfreq(box_size))
        spectra = spectra * along_y[:, :, None] * along_x[:, None, :]
    return spectra


def predicted_images(spectra: Tensor, transfer: Tensor, premultiplied: Tensor | None = None) -> Tensor:
    """(n, D, D) the images to expect: C p, or C² p where (n,) `premultiplied` says so."""
    seen = transfer * spectra
    if premultiplied is not None:
        seen = torch.where(premultiplied[:, None, None], transfer * seen, seen)
    return torch.fft.irfft2(seen, s=(spectra.shape[1],) * 2)


def shifts_in_pixels(particles: Particles, box_size: int) -> Tensor:
    """(n, 2) x, y: how far from pixel ``D′ // 2`` of the working box the particles lie, for `splat.project`."""
    full = particles.box_size
    centres = full // 2 - particles.origin_in_angstroms / particles.pixel_size_in_angstroms
    return torch.from_numpy(centres * (box_size / full) - box_size // 2)


def projection_factors(particles: Particles, box_size: int, widened: bool) -> Tensor:
    """(n, D′, D′//2+1) factors of the projections' transforms in p: the antisymmetric phases e^{iφ} (real without any).

    Where the Gaussians are `widened` (`splat.bandlimit`), also the inverse of the widening. The magnification is none
    of them: it is in the matrices that the projections are made with, `aberrations.slice_matrices`.
    """
    _, groups, of_image = _groups(particles)
    _, in_volume = _radii(groups, box_size)
    kappa = WIDENING if widened else 0.0
    widening = np.exp(2 * np.pi**2 * kappa * np.minimum(in_volume / box_size, 0.5) ** 2).astype(np.float32)
    factors: NDArray = widening[of_image]
    phases, phase_of = antisymmetric_factors(particles, box_size)
    if len(phases):
        turned = phase_of >= 0
        factors = factors.astype(np.complex64)
        factors[turned] *= phases[phase_of[turned]]
    return torch.from_numpy(factors)


def contrast_transfer(
    particles: Particles, box_size: int, defocus_changes_in_angstroms: Tensor | None = None
) -> Tensor:
    """(n, D′, D′//2+1) CTFs, envelopes included.

    Args:
        defocus_changes_in_angstroms: (n,) added to both defoci of each image; the CTFs are differentiable by them.
    """
    # The same frequencies in a smaller box of larger pixels.
    optics = tuple(
        replace(g, box_size=box_size, pixel_size_in_angstroms=g.pixel_size_in_angstroms * g.box_size / box_size)
        for g in particles.optics
    )
    particles = replace(particles, optics=optics)
    if defocus_changes_in_angstroms is None:
        return torch.from_numpy(ctf(particles))
    return _Defocused.apply(defocus_changes_in_angstroms, particles)


class _Defocused(torch.autograd.Function):
    """CTFs at changed defoci."""

    @staticmethod
    def forward(ctx, changes, particles):
        change = changes.detach().double().numpy()
        ctx.particles = replace(
            particles,
            defocus_u_in_angstroms=particles.defocus_u_in_angstroms + change,
            defocus_v_in_angstroms=particles.defocus_v_in_angstroms + change,
        )
        ctx.dtype = changes.dtype
        return torch.from_numpy(ctf(ctx.particles))

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        # dC/dz = π λ s² cos χ, and a quarter of a wave further on the CTF has the cosine in the sine's place.
        p = ctx.particles
        ahead = ctf(replace(p, phase_shift_in_degrees=p.phase_shift_in_degrees + 90))
        _, groups, of_image = _groups(p)
        _, in_volume = _radii(groups, p.box_size)
        wavelengths = electron_wavelength_in_angstroms([group.voltage_in_kilovolts for group in groups])
        per_defocus = np.pi * wavelengths[:, None, None] * (in_volume / (p.box_size * p.pixel_size_in_angstroms)) ** 2
        slopes = per_defocus[of_image] * ahead
        return (cotangent * torch.from_numpy(slopes)).sum(dim=(1, 2)).to(ctx.dtype), None


def _groups(particles: Particles) -> tuple[NDArray[np.int32], list[OpticsGroup], NDArray[np.int64]]:
    """Numbers of the optics groups that occur, these groups, and (n,) which of them is each image's."""
    numbers, of_image = np.unique(particles.optics_group, return_inverse=True)
    return numbers, [particles.optics[number] for number in numbers], of_image


def _radii(groups: list[OpticsGroup], box_size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|k| on the half plane, (D′, D′//2+1), and |M k| with each group's magnification, (groups, …), units of 1/D′."""
    ky = np.fft.fftfreq(box_size, 1 / box_size)[:, None]
    kx = np.arange(box_size // 2 + 1)
    in_volume = [np.hypot(a * kx + b * ky, c * kx + d * ky) for a, b, c, d in (g.magnification for g in groups)]
    return np.hypot(kx, ky), np.array(in_volume)
