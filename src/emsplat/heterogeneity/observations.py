"""The data of the images below a limit of frequency, kept in memory: all that latents need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.slices import half_plane
from emsplat.optics.aberrations import slice_matrices
from emsplat.particles.batches import Images
from emsplat.particles.parts import Entries, Kind, PartWeights
from emsplat.particles.table import Particles
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.statistics.accumulate import AccumulationSettings, blocks_of, prepared_blocks


@dataclass(frozen=True)
class Observations:
    """Samples of n images, centred, in the units of a working box D′; they take 12 bytes per sample."""

    rows: NDArray[np.int64]  # (n,) rows of the particle table
    particle: NDArray[np.int64]  # (n,) images that share one latent share a number, and are neighbours
    samples: NDArray[np.int64]  # (m, 2) kx, ky in units of 1/D′
    spectra: NDArray[np.complex64]  # (n, m) C W² y
    weights: NDArray[np.float32]  # (n, m) C² W²
    matrices: NDArray[np.float64]  # (n, 3, 3) B of the slices
    box_size: int  # D′

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def multiplicity(self) -> NDArray[np.float32]:
        """(m,) number of times that a sample of the half plane counts in the whole plane: 2, for k and −k."""
        return np.full(len(self.samples), 2, dtype=np.float32)

    def part(self, chosen: slice | NDArray) -> Observations:
        """The observations of some of the images."""
        return Observations(
            self.rows[chosen], self.particle[chosen], self.samples, self.spectra[chosen], self.weights[chosen],
            self.matrices[chosen], self.box_size,
        )  # fmt: skip


def observe(
    particles: Particles,
    images: Images,
    rows: NDArray[np.int64],
    noise: NDArray[np.float64],
    box_size: int,
    limit_shell: int,
    latent: NDArray[np.int64] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Observations:
    """Read the images of these rows once, in the order given.

    Args:
        rows: with the images that share a latent side by side.
        noise: (groups, D//2+1) from `noise_spectra`; box_size: D′; limit_shell: below D′/2.
        latent: (N,) numbers from `shared_latents`; if left out, those of the particles.
    """
    samples = half_plane(limit_shell)
    at = (slice(None), samples[:, 1] % box_size, samples[:, 0])
    spectra = np.empty((len(rows), len(samples)), dtype=np.complex64)
    weights = np.empty((len(rows), len(samples)), dtype=np.float32)
    settings = AccumulationSettings(box_size, box_size, noise, np.eye(3)[None])
    blocks = blocks_of(rows, particles.box_size, settings.block_bytes)
    parts, one = PartWeights.whole(len(particles)), np.ones(1, dtype=bool)

    def entries(block: int) -> tuple[Entries, Entries]:
        return parts.entries(blocks[block], Kind.B, one), parts.entries(blocks[block], Kind.T, one)

    done = 0
    for (_, block_spectra), (_, block_weights) in prepared_blocks(
        particles, images, len(blocks), entries, settings, Stopwatch()
    ):
        here = slice(done, done + len(block_spectra))
        spectra[here], weights[here] = block_spectra[at], block_weights[at]
        done = here.stop
        progress(done)
    latent = particles.particle if latent is None else latent
    return Observations(rows, latent[rows], samples, spectra, weights, slice_matrices(particles)[rows], box_size)


def shared_latents(particles: Particles) -> NDArray[np.int64]:
    """(N,) numbers of the rows, equal for those that share one latent, which are the tilts of one particle.

    Tilts are the rows that the file names so. If it names none, they are the rows of one particle whose exposures or
    B-factors differ. Other rows of one particle are copies of its image, as the expansion of a symmetry makes them, or
    images of its parts. Each shows the particle in another place of the model, which varies by itself, and has a latent
    of its own.
    """
    named = particles.tilted_particle
    _, particle = np.unique(particles.particle if named is None else named, return_inverse=True)
    count = particle.max(initial=-1) + 1
    tilted = np.zeros(count, dtype=bool) if named is None else np.bincount(particle) > 1
    for values in (particles.pre_exposure, particles.b_factor_in_square_angstroms) if named is None else ():
        least, most = np.full(count, np.inf), np.full(count, -np.inf)
        np.minimum.at(least, particle, values)
        np.maximum.at(most, particle, values)
        tilted |= most > least
    image = particles.stack.astype(np.int64) * (int(particles.section.max(initial=0)) + 1) + particles.section
    order = np.argsort(image, kind="stable")
    first = np.append(True, np.diff(image[order]) != 0)[: len(order)]
    copy = np.empty(len(order), dtype=np.int64)  # number of times that the same image has come before
    copy[order] = np.arange(len(order)) - np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    alone = np.arange(len(order))
    tilt = particle * (copy.max(initial=0) + 1) + copy
    return np.where(tilted[particle], tilt + len(order), alone)


def side_by_side(rows: NDArray[np.int64], particle: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows in the order of their particles' first rows, so that the images of a particle are neighbours.

    Args: particle: (N,) number of the particle, or of the latent, of each row of the table.
    """
    _, first, of_row = np.unique(particle[rows], return_index=True, return_inverse=True)
    return rows[np.argsort(first[of_row], kind="stable")]


def blocks_of_particles(particle: NDArray[np.int64], most: int) -> list[slice]:
    """Blocks of at most so many neighbouring images that divide no particle. A larger particle is one block."""
    ends = [*(np.flatnonzero(np.diff(particle)) + 1).tolist(), len(particle)]
    blocks, begin, end = [], 0, 0
    for following in ends:
        if following - begin > most and end > begin:
            blocks.append(slice(begin, end))
            begin = end
        end = following
    return [*blocks, slice(begin, end)] if end > begin else blocks
