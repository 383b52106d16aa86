"""Small particles of known shape, hand and place, and images of them, for the tests of several rooms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.imaging.noise import noise_spectra
from emsplat.io import ImageSource
from emsplat.models.gaussians import Gaussians
from emsplat.particles.batches import Images
from emsplat.particles.parts import Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.simulation import SimulationSettings
from emsplat.simulation.acquisition import acquire
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.statistics.sufficient import Statistics


def lopsided_map(box_size: int, n: int = 40, seed: int = 0) -> NDArray[np.float32]:
    """(D, D, D) a particle without any symmetry, hand included: Gaussians strung along a widening helix."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, n)
    radius = (0.08 + 0.18 * t) * box_size
    centres = np.stack([radius * np.cos(9 * t), radius * np.sin(9 * t), (t - 0.5) * 0.5 * box_size], axis=1)
    model = Gaussians(
        torch.tensor(centres, dtype=torch.float32),
        torch.tensor(np.log(rng.uniform(0.5, 0.9, (n, 3))), dtype=torch.float32),
        torch.tensor(rng.normal(size=(n, 4)), dtype=torch.float32),
        torch.tensor(np.log(rng.uniform(5, 20, n)), dtype=torch.float32),
    )
    return model.voxelise(box_size, 1.0)


def together(groups: Iterable[dict[Part, Statistics]]) -> dict[Part, Statistics]:
    """The statistics of all groups of parts that an accumulation yields."""
    return {part: found for group in groups for part, found in group.items()}


def imagined_particles(n: int, box_size: int, pixel_size: float = 2.0, seed: int = 0) -> Particles:
    """Particles with shifts, astigmatism and phase shift whose images no file holds."""
    settings = SimulationSettings(
        n_images=n,
        box_size=max(box_size, 16),
        pixel_size_in_angstroms=pixel_size,
        seed=seed,
        astigmatism_in_angstroms=1500.0,
        phase_shift_in_degrees=20.0,
        shift_sigma_in_angstroms=1.5 * pixel_size,
    )
    particles = acquire(settings, Path("imagined.star"), Path("imagined.mrcs"))
    return replace(particles, optics=tuple(replace(group, box_size=box_size) for group in particles.optics))


class ImagesInMemory:
    """Stands in for an ImageSource."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self.images, self.box_size = images, images.shape[-1]

    def read(self, rows: NDArray) -> NDArray[np.float32]:
        return self.images[rows].copy()

    def read_into(self, rows: NDArray, images: NDArray[np.float32]) -> None:
        images[:] = self.images[rows]


def numbered_parts(numbers: NDArray[np.integer]) -> PartWeights:
    """Parts numbered from 0, with the weight 1; (N,) number of each image's part, negative for none."""
    return PartWeights.one_part_each([Part(state=number) for number in range(int(numbers.max()) + 1)], numbers)


def accumulated(
    particles: Particles,
    images: Images,
    numbers: NDArray[np.integer],
    settings: AccumulationSettings,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Statistics]:
    """The statistics of numbered parts; (N,) number of each image's part, negative for none."""
    return list(accumulate(particles, images, numbered_parts(numbers), settings, progress).values())


def inverted(particles: Particles) -> NDArray[np.float32]:
    """(D, D, D) the direct inversion of all images of a table."""
    with ImageSource(particles) as images:
        rows = np.arange(len(particles))
        noise = noise_spectra(images.read(rows), particles)
        settings = AccumulationSettings(particles.box_size, particles.box_size, noise, np.eye(3)[None])
        return accumulated(particles, images, np.zeros(len(rows), dtype=np.int8), settings)[0].raw_map()
