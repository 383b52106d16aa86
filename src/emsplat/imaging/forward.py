"""The forward model of the images of particles.

In Fourier space an image is ``y = C · p + noise`` with ``p = c · e^{iφ} · shift · P V``: the projection P V of the
density V, shifted to where the particle lies, with the antisymmetric aberrations φ, times the image's contrast c; C is
the CTF, envelopes included. Premultiplied data hold ``C · y``. Simulation, check, report and the fits make their
predictions here, and `likelihood` compares them with recorded images.

P V comes from a projection in real space (`splat.project`), or from a central slice of V's transform
(`fourier.slices`). All is differentiable with respect to projections, contrasts, shifts and defocus. Half planes have
ky in fft order and kx from 0; a projection's and an image's origin is pixel 0, so that the particle's place shows in
the phases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from emsplat.conventions import electron_wavelength_in_angstroms
from emsplat.fourier.slices import FourierVolume, central_slices
from emsplat.optics.aberrations import antisymmetric_factors, slice_matrices
from emsplat.optics.ctf import ctf, ctf_in_double_precision
from emsplat.particles.table import OpticsGroup, Particles
from emsplat.splat.bandlimit import WIDENING


@dataclass(frozen=True)
class ForwardModel:
    """The images of n particles in a box of D′ ≤ D pixels, to which they are cropped in Fourier space."""

    particles: Particles  # n rows
    box_size: int  # D′
    double: bool = False  # whether to work in float64 by the plain formulas, against which kernels are tested

    @staticmethod
    def of(particles: Particles, box_size: int | None = None, double: bool = False) -> ForwardModel:
        """The model in this box, by default that of the images."""
        return ForwardModel(particles, box_size or particles.box_size, double)

    @cached_property
    def matrices(self) -> Tensor:
        """(n, 3, 3) float64 from `aberrations.slice_matrices`: the poses and the magnification."""
        return torch.from_numpy(slice_matrices(self.particles))

    @cached_property
    def shifts(self) -> Tensor:
        """(n, 2) x, y in pixels of the box: displacement of the particles from pixel ``D′ // 2``."""
        return shifts_in_pixels(self.particles, self.box_size)

    @cached_property
    def transfer(self) -> Tensor:
        """(n, D′, D′//2+1) CTFs C."""
        return contrast_transfer(self.particles, self.box_size, double=self.double)

    @cached_property
    def phases(self) -> tuple[Tensor, Tensor]:
        """(a, D′, D′//2+1) factors e^{iφ} of optics groups with aberrations; (n,) index for each image, −1 for none."""
        dtype = np.complex128 if self.double else np.complex64
        factors, factor_of = antisymmetric_factors(self.particles, self.box_size, dtype)
        return torch.from_numpy(factors), torch.from_numpy(factor_of)

    @cached_property
    def premultiplied(self) -> Tensor:
        """(n,) whether the images hold C · y."""
        return torch.from_numpy(self.particles.premultiplied)

    def from_projections(self, projections: Tensor, contrasts: Tensor | None = None) -> Tensor:
        """(n, D′, D′//2+1) p from projections (n, D′, D′), already shifted, of a density widened by κ."""
        return image_spectra(projections, projection_factors(self.particles, self.box_size, widened=True), contrasts)

    def from_volume(self, volume: FourierVolume) -> Tensor:
        """(n, D′, D′//2+1) p from the transform of a density in the box; zero from Nyquist's radius on."""
        p, ratio = self.particles, self.box_size / self.particles.box_size
        between_centres = self.box_size // 2 - p.box_size // 2 * ratio  # 0 if both boxes are even
        origins = p.origin_in_angstroms / p.pixel_size_in_angstroms * ratio + between_centres
        spectra = torch.from_numpy(central_slices(volume, self.matrices.numpy(), origins))
        factors, factor_of = self.phases
        for number, factor in enumerate(factors):
            spectra[factor_of == number] *= factor
        return spectra

    def seen(self, spectra: Tensor) -> Tensor:
        """(n, D′, D′//2+1) transforms of the predicted images: C p, or C² p for premultiplied ones."""
        return seen_spectra(spectra, self.transfer, self.premultiplied)

    def images(self, spectra: Tensor) -> Tensor:
        """(n, D′, D′) the predicted images, from p."""
        return predicted_images(spectra, self.transfer, self.premultiplied)


def image_spectra(
    projections: Tensor, factors: Tensor, contrasts: Tensor | None = None, shifts: Tensor | None = None
) -> Tensor:
    """(n, D, D//2+1) transforms p of the images before the CTF.

    Args:
        projections: (n, D, D) from `splat.project`.
        factors: from `projection_factors`.
        contrasts: (n,) contrast of each image; 1 if absent.
        shifts: (n, 2) x, y in pixels, in addition to those of the projections; they wrap around the edges of the image.
    """
    spectra = torch.fft.rfft2(projections) * factors
    if contrasts is not None:
        spectra = spectra * contrasts[:, None, None]
    if shifts is not None:
        along_y, along_x = shift_factors(shifts.to(projections.dtype), projections.shape[-1])
        spectra = spectra * along_y * along_x
    return spectra


def seen_spectra(spectra: Tensor, transfer: Tensor, premultiplied: Tensor | None = None) -> Tensor:
    """(n, D, D//2+1) C p, or C² p for the images that are `premultiplied`, (n,)."""
    seen = transfer * spectra
    if premultiplied is not None:
        seen = torch.where(premultiplied[:, None, None], transfer * seen, seen)
    return seen


def predicted_images(spectra: Tensor, transfer: Tensor, premultiplied: Tensor | None = None) -> Tensor:
    """(n, D, D) the predicted images, from p."""
    return torch.fft.irfft2(seen_spectra(spectra, transfer, premultiplied), s=(spectra.shape[1],) * 2)


def shift_factors(shifts: Tensor, box_size: int) -> tuple[Tensor, Tensor]:
    """(n, D, 1) and (n, 1, D//2+1) factors of the transforms of images that are moved by (n, 2) x, y in pixels."""
    x, y = (-2j * torch.pi * s[:, None] for s in shifts.unbind(dim=1))
    along_y = torch.exp(y * torch.fft.fftfreq(box_size, dtype=shifts.dtype))
    along_x = torch.exp(x * torch.fft.rfftfreq(box_size, dtype=shifts.dtype))
    return along_y[:, :, None], along_x[:, None, :]


def shifts_in_pixels(particles: Particles, box_size: int) -> Tensor:
    """(n, 2) x, y: displacement of the particles from pixel ``D′ // 2`` of the working box, for `splat.project`."""
    return torch.from_numpy(particles.centres_in_pixels * (box_size / particles.box_size) - box_size // 2)


def projection_factors(particles: Particles, box_size: int, widened: bool) -> Tensor:
    """(n, D′, D′//2+1) factors of the transforms of projections in p: antisymmetric phases e^{iφ} (real without any).

    If the density is `widened` (`splat.bandlimit`), they include the inverse of the widening. The magnification is not
    among them, because it is in the matrices of the projections, `aberrations.slice_matrices`.
    """
    _, groups, of_image = _groups(particles)
    _, in_volume = frequency_radii(groups, box_size)
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
    particles: Particles, box_size: int, defocus_changes_in_angstroms: Tensor | None = None, double: bool = False
) -> Tensor:
    """(n, D′, D′//2+1) CTFs, envelopes included.

    Args:
        defocus_changes_in_angstroms: (n,) changes of the defocus of each image; the CTFs are differentiable in them.
        double: whether to work in float64, by `ctf_in_double_precision`.
    """
    # A smaller box with larger pixels has the same frequencies.
    optics = tuple(
        replace(g, box_size=box_size, pixel_size_in_angstroms=g.pixel_size_in_angstroms * g.box_size / box_size)
        for g in particles.optics
    )
    particles = replace(particles, optics=optics)
    if defocus_changes_in_angstroms is not None:
        return _Defocused.apply(defocus_changes_in_angstroms, particles)
    return torch.from_numpy(ctf_in_double_precision(particles) if double else ctf(particles))


class _Defocused(torch.autograd.Function):
    """CTFs with a changed defocus."""

    @staticmethod
    def forward(ctx, changes, particles):
        ctx.particles = particles.with_defocus_changed(changes.detach().double().numpy())
        ctx.dtype = changes.dtype
        return torch.from_numpy(ctf(ctx.particles))

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        # dC/dz = π λ s² cos χ; a quarter of a wave further on, the CTF has the cosine in place of the sine.
        p = ctx.particles
        ahead = ctf(replace(p, phase_shift_in_degrees=p.phase_shift_in_degrees + 90))
        _, groups, of_image = _groups(p)
        _, in_volume = frequency_radii(groups, p.box_size)
        wavelengths = electron_wavelength_in_angstroms([group.voltage_in_kilovolts for group in groups])
        per_defocus = np.pi * wavelengths[:, None, None] * (in_volume / (p.box_size * p.pixel_size_in_angstroms)) ** 2
        slopes = per_defocus[of_image] * ahead
        return (cotangent * torch.from_numpy(slopes)).sum(dim=(1, 2)).to(ctx.dtype), None


def _groups(particles: Particles) -> tuple[NDArray[np.int32], list[OpticsGroup], NDArray[np.int64]]:
    """Numbers of the optics groups that occur, these groups, and (n,) the index of each image's group among them."""
    numbers, of_image = np.unique(particles.optics_group, return_inverse=True)
    return numbers, [particles.optics[number] for number in numbers], of_image


def frequency_radii(groups: list[OpticsGroup], box_size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|k| on the half plane, (D′, D′//2+1), and |M k| for each group's magnification, (groups, …); both in 1/D′."""
    ky = np.fft.fftfreq(box_size, 1 / box_size)[:, None]
    kx = np.arange(box_size // 2 + 1)
    in_volume = [np.hypot(a * kx + b * ky, c * kx + d * ky) for a, b, c, d in (g.magnification for g in groups)]
    return np.hypot(kx, ky), np.array(in_volume)
