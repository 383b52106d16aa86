"""Sums over images, sample by sample in float64, that the accumulated statistics are held against; and their images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from emsplat.fourier.background import outside_circle
from emsplat.optics.aberrations import antisymmetric_phase
from emsplat.optics.ctf import ctf
from emsplat.particles.table import Particles
from emsplat.statistics.sufficient import Statistics


def one_set(particles: Particles) -> NDArray[np.int8]:
    return np.zeros(len(particles), dtype=np.int8)


# Of some radians at Nyquist's frequency where pixels are of 2 Å.
ABERRATIONS = {
    "beam_tilt_in_milliradians": (3.0, -2.0),
    "odd_zernike": (1.0, 0.0, 80.0, 0.0, 0.0, -50.0),
    "even_zernike": (0.3, 0.0, 20.0, -10.0),
    "magnification": (1.1, 0.05, -0.03, 0.92),
}


def two_kinds(particles: Particles, premultiplied: bool) -> Particles:
    """Every other image from a second optics group of another voltage, aberrated, and perhaps premultiplied."""
    first = particles.optics[0]
    second = replace(first, name="other", voltage_in_kilovolts=200.0, premultiplied=premultiplied, **ABERRATIONS)
    return replace(particles, optics=(first, second), optics_group=np.arange(len(particles), dtype=np.int32) % 2)


def without_plane(images: NDArray) -> NDArray[np.float64]:
    """(n, D, D) images without the plane that fits each of them best beside the particle."""
    box_size = images.shape[-1]
    window = outside_circle(box_size).ravel().astype(np.float64)
    y, x = np.mgrid[:box_size, :box_size]
    terms = np.stack([np.ones(x.shape), x, y], axis=-1).reshape(-1, 3)
    root = np.sqrt(window)
    flat = images.reshape(len(images), -1).astype(np.float64)
    fit = np.linalg.lstsq(terms * root[:, None], (flat * root).T, rcond=None)[0]
    return (flat - (terms @ fit).T).reshape(images.shape)


def direct_gradient(volume: NDArray, images: NDArray, particles: Particles, noise: NDArray) -> NDArray[np.float64]:
    """Σ Pᵀ W² C (C P V − y), image by image, sample by sample, in float64; Pᵀ W² (C² P V − y′) if premultiplied."""
    box_size = particles.box_size
    images = without_plane(images)
    place = np.arange(box_size) - box_size // 2
    k = np.fft.fftfreq(box_size, 1 / box_size)
    kx, ky = (a.ravel() for a in np.meshgrid(k, k))
    step = 1 / (box_size * particles.pixel_size_in_angstroms)
    transfer = ctf(particles).astype(np.float64)
    centres = box_size // 2 - particles.origin_in_angstroms / particles.pixel_size_in_angstroms
    gradient = np.zeros((box_size,) * 3)
    all_kx, all_ky = kx, ky
    for i, a in enumerate(particles.rotations()):
        m = np.reshape(particles.optics[particles.optics_group[i]].magnification, (2, 2))
        shell, in_volume = (np.hypot(*(n @ [all_kx, all_ky])) for n in (np.eye(2), m))
        known = (shell > 0) & (shell < box_size / 2) & (in_volume < box_size / 2)
        kx, ky, shell = all_kx[known], all_ky[known], shell[known]
        mx, my = m @ [kx, ky]
        waves = [np.exp(-2j * np.pi / box_size * np.outer(mx * a[0, j] + my * a[1, j], place)) for j in range(3)]
        x, y, z = waves
        projection = np.einsum("kx,ky,kz,zyx->k", x, y, z, volume, optimize=True)
        group = particles.optics_group[i]
        weight = np.interp(shell, np.arange(noise.shape[1]), 1 / noise[group])
        rows, columns = np.where(kx < 0, -ky, ky).astype(int) % box_size, np.abs(kx).astype(int)
        c = transfer[i][rows, columns]  # even in k
        # The spectrum about the particle's centre.
        towards = np.exp(2j * np.pi / box_size * (kx * centres[i, 0] + ky * centres[i, 1]))
        seen = np.fft.fft2(images[i].astype(np.float64))[ky.astype(int), kx.astype(int)] * towards
        seen *= np.exp(-1j * antisymmetric_phase(particles.optics[group], kx * step, ky * step))
        back = weight * (c * c * projection - (1 if particles.optics[group].premultiplied else c) * seen)
        gradient += np.einsum("k,kx,ky,kz->zyx", back, x.conj(), y.conj(), z.conj(), optimize=True).real
    return gradient


def gradient_of(s: Statistics, volume: NDArray) -> NDArray[np.float64]:
    """T∗V − b where T, r from −e, is exact over the whole box."""
    e, d = s.kernel.shape[0] // 2, s.box_size
    full = fftconvolve(volume.astype(np.float64), s.kernel.astype(np.float64))
    return full[e : e + d, e : e + d, e : e + d] - s.backprojection
