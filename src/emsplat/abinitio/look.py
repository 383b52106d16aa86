"""A first look at images without poses: the noise, the particle's diameter, the sign of its contrast.

All are statistics of ``z``, the image times its CTF over the noise power, which gathers what the CTF has spread. The
variance of z over the images stands out where there is a particle. The mean of z over the images is the average of the
particle over all directions and turns, a disc that is bright if particles are white.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.cropping import fourier_crop
from emsplat.imaging.noise import noise_spectra
from emsplat.optics.ctf import ctf
from emsplat.particles.batches import Images
from emsplat.particles.table import Particles

_SAMPLE, _SAMPLE_BYTES = 2000, 192 << 20
_BOX = 32  # pixels that images are cropped to, which suffices for a diameter
_OUTLINE = 0.04  # share of the largest excess variance that still belongs to the particle
_TAIL, _FALLING = 0.12, 1.6  # a particle's edge falls by this factor within two rings; a tail below this share may not
_FLAT = 1.8  # largest over smallest excess in a flat tail; beyond a single particle the excess falls by more
_SURE = 5.0  # standard errors that leave no doubt
_UNSEEN = 0.5  # share of the box: a circle within the particle shows its contrast, a wider one dilutes it


@dataclass(frozen=True)
class Look:
    """What a sample of the images shows."""

    n_sampled: int
    noise: NDArray[np.float64]  # (groups, D//2+1) from `noise_spectra`
    diameter: float | None  # pixels: circle about the image's middle that holds the particles; None: not visible
    contrast: float  # standard errors by which the middle is brighter than its surroundings

    @property
    def surely_dark(self) -> bool:
        """Whether the particles are dark beyond doubt."""
        return self.contrast < -_SURE

    @property
    def surely_white(self) -> bool:
        """Whether the particles are white beyond doubt."""
        return self.contrast > _SURE


def look_at(particles: Particles, images: Images, seed: int) -> Look:
    """Look at a random sample of the images."""
    full = particles.box_size
    rng = np.random.default_rng(seed)
    n = min(len(particles), _SAMPLE, max(100, _SAMPLE_BYTES // (4 * full**2)))
    rows = np.sort(rng.choice(len(particles), n, replace=False))
    chosen = particles.select(rows)
    block = images.read(rows)
    subtract_background(block, outside_circle(full))
    noise = noise_spectra(block, chosen)
    gathered = _gathered(block, chosen, noise, min(full, _BOX))
    scale = full / gathered.shape[1]
    diameter = _outline(gathered)
    contrast = _contrast(gathered, diameter or _UNSEEN * gathered.shape[1])
    return Look(n, noise, None if diameter is None else diameter * scale, contrast)


def _gathered(
    block: NDArray[np.float32], chosen: Particles, noise: NDArray[np.float64], box_size: int
) -> NDArray[np.float32]:
    """(n, B, B) z with its origin at pixel B//2, smoothed to half of Nyquist's frequency."""
    full = chosen.box_size
    ky, kx = np.meshgrid(np.fft.fftfreq(box_size, 1 / box_size), np.arange(box_size // 2 + 1), indexing="ij")
    radius = np.hypot(kx, ky)
    smooth = np.exp(-0.5 * (radius / (box_size / 4)) ** 2) * (radius > 0)
    to_middle = np.exp(2j * np.pi * (kx + ky) * ((full // 2) / full - (box_size // 2) / box_size))
    shells = np.arange(noise.shape[1])
    inverse = np.array([smooth / np.interp(radius, shells, values) for values in noise])
    out = np.empty((len(block), box_size, box_size), np.float32)
    for rows in np.array_split(np.arange(len(block)), max(1, len(block) // 256)):
        some = chosen.select(rows)
        spectra = fourier_crop(scipy.fft.rfft2(block[rows]), box_size) * inverse[some.optics_group] * to_middle
        premultiplied = np.array([g.premultiplied for g in some.optics])[some.optics_group]
        spectra = np.where(
            premultiplied[:, None, None], spectra, spectra * fourier_crop(ctf(some).astype(np.complex64), box_size).real
        )
        out[rows] = scipy.fft.irfft2(spectra, s=(box_size, box_size))
    return out


def _outline(gathered: NDArray[np.float32]) -> float | None:
    """Diameter in pixels: twice the distance to which the variance over the images exceeds that at the border."""
    n, box_size = gathered.shape[:2]
    ring, sizes = _rings(box_size)
    variance = np.bincount(ring.ravel(), gathered.var(axis=0, dtype=np.float64).ravel()) / sizes
    outside = np.arange(len(sizes)) >= 0.47 * box_size
    excess = variance - np.average(variance[outside], weights=sizes[outside])
    # Neighbouring pixels of a smoothed image are alike, so only a quarter of them count.
    error = variance * np.sqrt(2 / n / np.maximum(sizes / 4, 1))
    stands_out = (excess > _OUTLINE * excess.max() + _tail(excess, box_size)) & (excess > 4 * error)
    if np.count_nonzero(stands_out[: box_size // 2]) < 2 or excess.max() < 8 * error[excess.argmax()]:
        return None
    # Where all images are alike, as in the middle of some particles, there is no variance; half of the rings suffice.
    rings = np.arange(1, box_size // 2 + 1)
    share = np.cumsum(stands_out[: len(rings)]) / rings
    reached = np.flatnonzero(stands_out[: len(rings)] & (share >= 0.5))
    if not len(reached):
        return None
    last = int(reached[-1])
    while last > 2 and excess[last] < _TAIL * excess.max() and excess[last - 2] < _FALLING * excess[last]:
        last -= 1
    return min(2.0 * (last + 1), float(box_size))


def _tail(excess: NDArray[np.float64], box_size: int) -> float:
    """The level of a flat tail of the variance, which neighbouring particles in some of the images make; 0 for none."""
    outer = excess[int(0.38 * box_size) : int(0.47 * box_size) + 1]
    is_flat = outer.min() > 0 and outer.max() < _FLAT * outer.min()
    return float(outer.mean()) if is_flat and outer.max() < _TAIL * excess.max() else 0.0


def _contrast(gathered: NDArray[np.float32], diameter: float) -> float:
    """Number of standard errors by which the mean over the images is brighter in the circle than around it."""
    box_size = gathered.shape[1]
    axis = np.arange(box_size) - box_size // 2
    inside = (np.hypot(axis[:, None], axis) <= 0.35 * diameter).astype(np.float32)
    sums = np.einsum("nyx,yx->n", gathered, inside - inside.mean(), dtype=np.float64)
    error = sums.std() / np.sqrt(len(sums))
    return float(sums.mean() / error) if error > 0 else 0.0


def _rings(box_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    axis = np.arange(box_size) - box_size // 2
    ring = np.rint(np.hypot(axis[:, None], axis)).astype(int)
    return ring, np.bincount(ring.ravel())
