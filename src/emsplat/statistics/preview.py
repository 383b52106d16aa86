"""A first look at a sample of the images: the noise, the size of the particle and the sign of its contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.fourier.background import outside_circle, subtract_background
from emsplat.imaging.noise import noise_spectra
from emsplat.particles.batches import Images
from emsplat.particles.parts import Part, PartWeights
from emsplat.particles.table import Particles, split_by_particle
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.statistics.sufficient import Statistics

_SAMPLE, _FEWEST = 1000, 100  # images that give the noise to 1 % per shell, and a map that shows the particle
_SAMPLE_BYTES = 96 << 20  # bytes of the sample, which large images reach with fewer of them
_BOX = 48  # largest edge of the preview map in voxels
_LOW_PASS = 8  # preview voxels; finer detail says nothing about the sign of the contrast
# A contrast is beyond doubt if both halves show the same density and its skewness is clear. The skewness was 0.9 to 1.9
# on ribosomes and simulations, with correlations of 0.78 to 0.99. Halves of three ribosomes' tilts each correlate by at
# most 0.14, those of 5 or 17 images by 0.28, those of noise alone by at most 0.11. Of 480 simulated sets of 12 to 300
# images of white particles, 46 had a negative skewness, with correlations of at most 0.25. A limit of 0.5 in place of
# 0.35 would miss 60 to 75 % of the sets that this one is sure of.
_SURE_CORRELATION, _SURE_SKEWNESS = 0.35, 0.5


@dataclass(frozen=True)
class Preview:
    """What a sample of the images shows."""

    n_sampled: int
    noise: NDArray[np.float64]  # (groups, D//2+1) from `noise_spectra`
    diameter_in_angstroms: float | None  # diameter of the particle's sphere about the box centre; None: not visible
    correlation: float  # correlation of the low-passed halves of the sample
    skewness: float  # skewness of their density; positive for white particles

    @property
    def contrast_is_sure(self) -> bool:
        """Whether the sample distinguishes white particles from dark ones."""
        return contrast_is_sure(self.correlation, self.skewness)

    @property
    def surely_dark(self) -> bool:
        """Whether the particles are dark beyond doubt, as in micrographs."""
        return self.contrast_is_sure and self.skewness < 0


def look_at_sample(particles: Particles, images: Images, symmetry: NDArray[np.float64], seed: int) -> Preview:
    """Noise spectra and a low-resolution inversion of both halves of a random sample."""
    rows, noise = _sampled(particles, images, seed)
    halves = [one.raw_map() for one in _halves(particles, images, rows, noise, symmetry, seed)]
    pixel_size = particles.pixel_size_in_angstroms * particles.box_size / len(halves[0])
    return Preview(len(rows), noise, outline_diameter(halves, pixel_size), *contrast(halves, pixel_size))


def statistics_of_sample(
    particles: Particles, images: Images, symmetry: NDArray[np.float64], seed: int
) -> tuple[Statistics, Statistics]:
    """The statistics of both halves of a random sample in a box of at most 48 voxels."""
    return _halves(particles, images, *_sampled(particles, images, seed), symmetry, seed)


def _sampled(particles: Particles, images: Images, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(n,) rows of a random sample, and its noise spectra."""
    rng = np.random.default_rng(seed)
    affordable = max(_FEWEST, _SAMPLE_BYTES // (4 * particles.box_size**2))
    rows = np.sort(rng.choice(len(particles), min(len(particles), _SAMPLE, affordable), replace=False))
    block = images.read(rows)
    subtract_background(block, outside_circle(particles.box_size))
    return rows, noise_spectra(block, particles.select(rows))


def _halves(
    particles: Particles,
    images: Images,
    rows: NDArray[np.int64],
    noise: NDArray[np.float64],
    symmetry: NDArray[np.float64],
    seed: int,
) -> tuple[Statistics, Statistics]:
    box_size = min(particles.box_size, _BOX)
    half = np.full(len(particles), -1)
    half[rows] = split_by_particle(particles.particle[rows], seed)
    parts = PartWeights.one_part_each([Part(1), Part(2)], half)
    settings = AccumulationSettings(box_size, box_size, noise, symmetry)
    first, second = accumulate(particles, images, parts, settings).values()
    return first, second


def contrast_is_sure(correlation: float, skewness: float) -> bool:
    """Whether this correlation and skewness of a sample distinguish white particles from dark ones."""
    return correlation > _SURE_CORRELATION and abs(skewness) > _SURE_SKEWNESS


def outline_diameter(halves: Sequence[NDArray[np.float32]], pixel_size: float) -> float | None:
    """Diameter in Å of the sphere about the box centre that holds the mask of the low-passed map; None without mask."""
    box_size = len(halves[0])
    mean = 0.5 * (halves[0] + halves[1])
    mask = maps.data_mask(mean, pixel_size, resolution=4 * pixel_size)
    if mask is None:
        return None
    return float(2 * maps.distance_from_origin(box_size)[mask > 0.5].max() * pixel_size)


def contrast(halves: Sequence[NDArray[np.float32]], pixel_size: float) -> tuple[float, float]:
    """Correlation of the low-passed halves and the skewness of the density they share.

    Molecules are bright and compact on a dark background, so that the third moment of their density has the sign of the
    contrast. Products across independent halves keep the noise out of it.
    """
    inside = maps.distance_from_origin(len(halves[0])) < 0.45 * len(halves[0])
    a, b = (maps.low_pass(h, pixel_size, _LOW_PASS * pixel_size)[inside].astype(np.float64) for h in halves)
    a, b = a - a.mean(), b - b.mean()
    shared = np.mean(a * b)
    norm = np.sqrt(np.mean(a * a) * np.mean(b * b))
    if shared <= 0 or norm == 0:
        return 0.0, 0.0
    return float(shared / norm), float(np.mean(0.5 * a * b * (a + b)) / shared**1.5)
