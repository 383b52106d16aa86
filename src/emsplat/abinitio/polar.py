"""Particle images on polar grids of Fourier space, on which the search for poses works.

An image y with CTF C and noise power σ² enters as ``I = C y / σ²`` (``y′ / σ²`` if it is premultiplied) on rings
r = 1 … R of the units 1/D, at Q angles of a half circle, and ``c²(r)``, the mean of ``C²/σ²`` over a ring. The full
CTF is applied on the image's side, so that astigmatism is kept. A soft circle that holds the particle removes the
noise outside it; it follows the multiplication by C, which gathers what the CTF has spread.

The log-likelihood of a projection P against no projection is ``Σ_k [Re P* I − ½ c² |P|²]`` over all Fourier pixels;
the sum over a ring of Fourier pixels is the mean over its angles times 2πr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from emsplat.abinitio.samples import StoredSamples
from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.fourier.cropping import fourier_crop
from emsplat.optics.aberrations import antisymmetric_factors
from emsplat.optics.ctf import ctf
from emsplat.particles.batches import Images
from emsplat.particles.table import Particles
from emsplat.runtime.ranks.world import World

_BLOCK_BYTES = 32 << 20
MOST_IN_MEMORY = 128 << 20  # size of the samples of one half set, above which they lie in a file
_SPARE_SHELLS = 3  # shells beyond the last ring, so that the circle's edge smears nothing into it


@dataclass(frozen=True)
class PolarGrid:
    """The points at which images and slices are sampled; radii in units of 1/D of the particle's box."""

    n_rings: int  # R
    n_angles: int  # Q, on the half circle
    n_orders: int  # M ≤ Q: angular frequencies m = 0 … M−1 that are kept
    diameter: float  # diameter of the particle's circle, as a share of the box

    @staticmethod
    def of(n_rings: int, diameter: float) -> PolarGrid:
        """The grid with as many angles as a projection of this diameter (share of the box) needs on the last ring."""
        n = _orders_for(n_rings, diameter)
        return PolarGrid(n_rings, n, n, diameter)

    def coarser(self, n_rings: int) -> PolarGrid:
        """The first rings alone, with the angular frequencies that these need."""
        n_rings = min(n_rings, self.n_rings)
        return PolarGrid(n_rings, self.n_angles, min(self.n_orders, _orders_for(n_rings, self.diameter)), self.diameter)

    @property
    def radii(self) -> NDArray[np.float64]:
        """(R,) radii of the rings, from 1."""
        return np.arange(1, self.n_rings + 1, dtype=np.float64)

    @property
    def angles(self) -> NDArray[np.float64]:
        """(Q,) angles in radians, from 0 to below π."""
        return np.pi * np.arange(self.n_angles) / self.n_angles

    @property
    def points(self) -> NDArray[np.float64]:
        """(R, Q, 2) kx, ky of the samples."""
        angle = self.angles
        return self.radii[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def to_orders(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Matrices (2·even orders, Q) and (2·odd orders, Q) to the real and imaginary parts of angular coefficients.

        The other half of the circle holds the complex conjugates. Coefficients of even order therefore come from the
        real part of the half circle, and those of odd order from its imaginary part.
        """
        return _to_orders(self.n_angles, self.n_orders)

    def from_orders(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The inverses of `to_orders`: (Q, 2·even orders) to the real part, (Q, 2·odd orders) to the imaginary part."""
        return _from_orders(self.n_angles, self.n_orders)


@lru_cache(maxsize=8)
def _to_orders(q: int, n_orders: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    angle = np.pi * np.arange(q) / q
    even, odd = (m[:, None] * angle for m in (np.arange(0, n_orders, 2), np.arange(1, n_orders, 2)))
    of_even = np.stack([np.cos(even), -np.sin(even)], axis=1) / q
    of_odd = np.stack([np.sin(odd), np.cos(odd)], axis=1) / q
    return tuple(np.ascontiguousarray(a.reshape(-1, q), dtype=np.float32) for a in (of_even, of_odd))  # type: ignore[return-value]


@lru_cache(maxsize=8)
def _from_orders(q: int, n_orders: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    scale = np.where(np.arange(n_orders) == 0, 1, 2)[:, None] * q
    even, odd = (np.repeat(scale[first::2], 2, axis=0) * a for first, a in enumerate(_to_orders(q, n_orders)))
    return np.ascontiguousarray(even.T, dtype=np.float32), np.ascontiguousarray(odd.T, dtype=np.float32)


def _orders_for(n_rings: int, diameter: float) -> int:
    """Number of orders: π R d, by which a radian of ψ turns the phase of the last ring for the rim, plus three."""
    return max(2 * n_rings, int(np.ceil(np.pi * n_rings * diameter)) + 3)


@dataclass(frozen=True)
class PolarImages:
    """The data of n images, ready for the comparison with any pose."""

    grid: PolarGrid
    signal: NDArray[np.complex64] | StoredSamples  # (n, R, Q) I
    power: NDArray[np.float32]  # (n, R) c²

    def __len__(self) -> int:
        return len(self.signal)

    def select(self, rows: NDArray) -> PolarImages:
        """The images of these rows."""
        return PolarImages(self.grid, self.signal[rows], self.power[rows])

    def coarser(self, n_rings: int) -> PolarImages:
        """The images on the first rings alone."""
        grid = self.grid.coarser(n_rings)
        signal = self.signal
        first = signal.first_rings(n_rings) if isinstance(signal, StoredSamples) else signal[:, : grid.n_rings]
        return PolarImages(grid, first, self.power[:, : grid.n_rings])


@dataclass(frozen=True)
class Spectra:
    """Radial powers that the images show by themselves; (R,), rings from 1, units of an unnormalised DFT."""

    image_power: NDArray[np.float64]  # ⟨|y|²⟩ over the images
    noise: NDArray[np.float64]
    ctf_power: NDArray[np.float64]  # ⟨C²⟩

    def mean(self, other: Spectra) -> Spectra:
        """The mean of the spectra of two sets with equal numbers of images."""
        return Spectra(
            0.5 * (self.image_power + other.image_power),
            0.5 * (self.noise + other.noise),
            0.5 * (self.ctf_power + other.ctf_power),
        )

    @property
    def signal(self) -> NDArray[np.float64]:
        """S(r): power of a projection; at least a thousandth of its largest value, where the noise hides it."""
        found = (self.image_power - self.noise) / np.maximum(self.ctf_power, 1e-3)
        return np.maximum(found, 1e-3 * max(found.max(), 1e-30))


def polar_blocks(
    particles: Particles,
    images: Images,
    rows: NDArray[np.int64],
    noise: NDArray[np.float64],
    grid: PolarGrid,
    circle_in_pixels: float,
    world: World,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.complex64], NDArray[np.float32], NDArray[np.float64]]]:
    """Positions among the rows, signal, power, and (4, R) sums over the images of |y|², σ², C² and 1, block by block.

    Args:
        noise: (groups, D//2+1) from `noise_spectra`.
        circle_in_pixels: diameter of the circle of each image that is kept.
        world: the ranks that do the blocks in turn; all of them get all blocks.
    """
    full, box_size = particles.box_size, min(working_box(grid, particles.box_size), images.box_size)
    transform = _to_polar(grid, box_size)
    window = _soft_circle(box_size, circle_in_pixels * box_size / full)
    ky, kx = np.meshgrid(np.fft.fftfreq(box_size, 1 / box_size), np.arange(box_size // 2 + 1), indexing="ij")
    to_origin = np.exp(2j * np.pi * (full // 2) * (kx + ky) / full).astype(np.complex64)
    radius = np.hypot(kx, ky)
    ring = np.rint(radius).astype(int)
    per_block = max(1, _BLOCK_BYTES // (4 * full**2))
    parts = np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // per_block)))

    def of_block(part: NDArray[np.int64]) -> tuple[NDArray[np.complex64], NDArray[np.float32], NDArray[np.float64]]:
        chosen = particles.select(rows[part])
        block = images.read(rows[part])
        if images.box_size == full:  # the background of cropped images has been subtracted already
            subtract_background(block, outside_circle(full))
        spectra = fourier_crop(scipy.fft.rfft2(block), box_size)
        del block
        factors = fourier_crop(ctf(chosen).astype(np.complex64), box_size).real
        premultiplied = np.array([g.premultiplied for g in chosen.optics])[chosen.optics_group]
        shells = np.arange(noise.shape[1])
        # The subtraction of the background removed the noise of the mean; that of the next shell stands in. Without
        # the mean, the area around the particle would be negative, and the circle would add a disc to the first rings.
        sigma2 = np.array([np.interp(np.maximum(radius, 1), shells, values) for values in noise], np.float32)
        sigma2 = sigma2[chosen.optics_group]
        sums = _ring_sums(spectra, sigma2, factors, premultiplied, ring, grid.n_rings)
        odd, odd_of = antisymmetric_factors(chosen, full)
        if len(odd):
            odd = fourier_crop(odd, box_size)
            for image in np.flatnonzero(odd_of >= 0):
                spectra[image] *= odd[odd_of[image]].conj()
        power = _ring_means(factors**2 / sigma2, ring, grid.n_rings)
        weighted = np.where(premultiplied[:, None, None], spectra, spectra * factors) / sigma2
        weighted *= to_origin
        real = np.fft.fftshift(scipy.fft.irfft2(weighted, s=(box_size, box_size)), axes=(1, 2)) * window
        flat = torch.from_numpy(np.ascontiguousarray(real, dtype=np.float32)).reshape(len(part), -1)
        signal = torch.complex(*(flat @ torch.from_numpy(m) for m in transform)).numpy()
        return signal.reshape(len(part), grid.n_rings, grid.n_angles), power, sums

    for first in range(0, len(parts), world.size):
        own = of_block(parts[first + world.rank]) if first + world.rank < len(parts) else None
        for owner, part in enumerate(parts[first : first + world.size]):
            yield part, *world.broadcast(own, owner)


def read_polar(
    particles: Particles,
    images: Images,
    rows: NDArray[np.int64],
    noise: NDArray[np.float64],
    grid: PolarGrid,
    circle_in_pixels: float,
    advance: Callable[[int, int], None] = lambda done, total: None,
    folder: Path | None = None,
    weight: float = 1.0,
    world: World | None = None,
) -> tuple[PolarImages, Spectra]:
    """The images of these rows on the polar grid, and the radial powers; see `polar_blocks`.

    The samples take 8 R Q bytes per image, which is 4 kB on 14 rings. If they are too many, they lie in a file.

    Args:
        folder: the folder of that file; by default the one of all temporary files.
        weight: factor on all log-likelihoods, as if the noise had been stronger by its inverse.
        world: the ranks that share the work, each of which gets all samples.
    """
    shape = len(rows), grid.n_rings, grid.n_angles
    in_memory = 8 * int(np.prod(shape)) <= MOST_IN_MEMORY
    signal = np.empty(shape, np.complex64) if in_memory else StoredSamples.empty(*shape, folder)
    power = np.empty((len(rows), grid.n_rings), np.float32)
    total = np.zeros((4, grid.n_rings))
    for part, block_signal, block_power, sums in polar_blocks(
        particles, images, rows, noise, grid, circle_in_pixels, world or World()
    ):
        signal[part], power[part] = np.float32(weight) * block_signal, np.float32(weight) * block_power
        total += sums
        advance(int(part[-1]) + 1, len(rows))
    image_power, sigma2, ctf_power = total[:3] / total[3]
    return PolarImages(grid, signal, power), Spectra(image_power, sigma2, ctf_power)


def working_box(grid: PolarGrid, box_size: int) -> int:
    """Edge in pixels of the box that images are cropped to in Fourier space."""
    return min(box_size, 2 * (grid.n_rings + _SPARE_SHELLS))


def _to_polar(grid: PolarGrid, box_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Real and imaginary part of the (B², R·Q) matrix of the exact transform of an image about pixel B//2."""
    axis = np.arange(box_size) - box_size // 2
    k = grid.points.reshape(-1, 2)
    along_x = np.exp(-2j * np.pi * np.outer(axis, k[:, 0]) / box_size)
    along_y = np.exp(-2j * np.pi * np.outer(axis, k[:, 1]) / box_size)
    matrix = (along_y[:, None, :] * along_x[None, :, :]).reshape(box_size**2, -1)
    return np.ascontiguousarray(matrix.real, np.float32), np.ascontiguousarray(matrix.imag, np.float32)


def _soft_circle(box_size: int, diameter: float) -> NDArray[np.float32]:
    axis = np.arange(box_size) - box_size // 2
    radius = np.hypot(axis[:, None], axis[None, :])
    edge = max(2.0, 0.05 * box_size)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip((radius - diameter / 2) / edge, 0, 1))).astype(np.float32)


def _ring_means(values: NDArray[np.float32], ring: NDArray[np.int64], n_rings: int) -> NDArray[np.float32]:
    """(n, R) means over rings 1 … R of (n, B, B//2+1)."""
    of_ring = np.stack([(ring == r).ravel() / np.count_nonzero(ring == r) for r in range(1, n_rings + 1)], axis=1)
    return values.reshape(len(values), -1) @ of_ring.astype(np.float32)


def _ring_sums(spectra, sigma2, factors, premultiplied, ring, n_rings) -> NDArray[np.float64]:
    """(4, R) sums over images, as in `polar_blocks`; premultiplied images hold C times the others' values."""
    image_power = _ring_means(spectra.real**2 + spectra.imag**2, ring, n_rings)
    squared = _ring_means(factors**2, ring, n_rings)
    # ⟨|C y|²⟩ ≈ ⟨C²⟩ (σ² + …), so the ring's own C² is divided out, which is accurate enough for a prior.
    image_power = np.where(premultiplied[:, None], image_power / np.maximum(squared, 1e-3), image_power)
    parts = (image_power, _ring_means(sigma2, ring, n_rings), squared, np.ones_like(squared))
    return np.stack([part.sum(axis=0, dtype=np.float64) for part in parts])
