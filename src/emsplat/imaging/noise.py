"""Radial noise spectra, one for each optics group, and whitening by them."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.conventions import spatial_frequency_radii
from emsplat.errors import InputError
from emsplat.fourier.background import outside_circle, plane_fit
from emsplat.optics.ctf import ctf
from emsplat.particles.table import Particles

_AT_ONCE = 64  # number of images whose transforms are held together


def shell_means(values: NDArray, box_size: int) -> NDArray[np.float64]:
    """(D//2 + 1,) means over the shells of the last two axes, a half plane (D, D//2+1), averaged over the others."""
    shells = np.rint(spatial_frequency_radii(box_size)).astype(int).ravel()
    mean = values.reshape(-1, shells.size).mean(axis=0, dtype=np.float64)
    n = box_size // 2 + 1
    return np.bincount(shells, mean, minlength=n)[:n] / np.bincount(shells, minlength=n)[:n]


def noise_spectra(images: NDArray[np.float32], particles: Particles) -> NDArray[np.float64]:
    """Power of the noise in every optics group.

    Premultiplied images hold CTF × noise. Their power divided by the mean CTF² is that of the original noise.

    Args:
        images: (n, D, D) images with the background subtracted; particles: the n rows of these images.
    Returns:
        (groups, D//2+1): mean |DFT of the noise|² in each shell, for a whole image and an unnormalised DFT.
    """
    box_size = images.shape[-1]
    window = outside_circle(box_size)
    counts = np.bincount(particles.optics_group, minlength=len(particles.optics))
    spectra = np.zeros((len(particles.optics), box_size // 2 + 1))
    for number in np.flatnonzero(counts):
        rows = np.flatnonzero(particles.optics_group == number)
        spectrum = _mean_spectrum(images, rows, window)
        group = particles.optics[number]
        if group.premultiplied:
            transfer = ctf(particles.select(rows))
            spectrum /= np.maximum(shell_means(_smeared((transfer**2).mean(axis=0), window), box_size), 1e-6)
        if not np.all(spectrum[1:] > 0):
            raise InputError(
                f"{particles.source}: images are blank outside the particle's circle, so their noise cannot be "
                "measured; use images that were not masked"
            )
        spectra[number] = np.maximum(spectrum, 1e-6 * spectrum.mean())
    # A group that is missing from the sample is rare; it takes the mean of the others.
    spectra[counts == 0] = np.average(spectra, axis=0, weights=counts / counts.sum())  # of one group: its own bits
    return spectra


def inverse_noise(noise: NDArray[np.float64], working: int, box_size: int) -> NDArray[np.float64]:
    """(groups, D′, D′//2+1) 1/noise on a half plane cropped to D′; 0 at DC and from Nyquist's radius on.

    Args:
        noise: (groups, D//2+1) from `noise_spectra`, interpolated between the shells.
    """
    ky, kx = np.meshgrid(np.fft.fftfreq(working, 1 / working), np.arange(working // 2 + 1), indexing="ij")
    radius = np.hypot(kx, ky)
    inverse = 1 / noise
    inverse[:, 0] = 0.0  # the mean of an image says nothing about the particle
    found = np.stack([np.interp(radius, np.arange(noise.shape[1]), values) for values in inverse])
    return np.where(2 * radius < box_size, found, 0.0)


def _mean_spectrum(images: NDArray[np.float32], rows: NDArray, window: NDArray[np.float32]) -> NDArray[np.float64]:
    """(D//2+1,) power of whole images, measured through the window."""
    box_size = images.shape[-1]
    total = np.zeros((box_size, box_size // 2 + 1))
    for first in range(0, len(rows), _AT_ONCE):
        spectra = scipy.fft.rfft2(images[rows[first : first + _AT_ONCE]] * window)
        total += (spectra.real**2 + spectra.imag**2).sum(axis=0, dtype=np.float64)
    return shell_means(total, box_size) * box_size**2 / (_power_kept(window) * len(rows))


def _power_kept(window: NDArray[np.float32]) -> NDArray[np.float64]:
    """(D//2+1,) power of white noise of variance 1 in each shell, after `subtract_background`, in the window.

    The plane removes some of the noise, most of all in the lowest shells. At the frequency k, the remainder is the
    noise times ``a = (1 − w B G⁻¹ Bᵀ) w e``, with the wave e, the window w, the basis B of the plane and G its Gram
    matrix.
    """
    box_size = len(window)
    axis, inverse = plane_fit(window)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    weighted = np.stack([np.ones_like(x), x, y]) * window
    twice = np.einsum("iyx,jyx->ij", weighted, weighted)
    c, d = scipy.fft.rfft2(weighted), scipy.fft.rfft2(weighted * window)
    overlap = np.einsum("iyx,ij,jyx->yx", c.conj(), inverse, d).real
    taken = np.einsum("iyx,ij,jyx->yx", c.conj(), inverse @ twice @ inverse, c).real
    whole = np.sum(window.astype(np.float64) ** 2)
    kept = shell_means(whole - 2 * overlap + taken, box_size)
    kept[0] = whole  # nothing is left of the mean, and it is not used
    return kept


def _smeared(power: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float64]:
    """A power spectrum (D, D//2+1) as seen through a window (D, D), which matters near the zeros of the CTF."""
    of_window = scipy.fft.irfft2(np.abs(scipy.fft.rfft2(window.astype(np.float64))) ** 2, s=window.shape)
    return scipy.fft.rfft2(scipy.fft.irfft2(power, s=window.shape) * of_window / of_window[0, 0]).real
