"""The data and settings that all stages need, and how the stages go through the images."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.heterogeneity.observations import (
    Observations,
    blocks_of_particles,
    observe,
    shared_latents,
    side_by_side,
)
from emsplat.heterogeneity.subspace import Stage, stages
from emsplat.io.images import ImageSource, reading_order
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.reconstruction.working_grid import Grid, working_grid
from emsplat.runtime.context import Context
from emsplat.runtime.ranks import World
from emsplat.runtime.reporting import Reporter
from emsplat.settings import HeterogeneitySettings, InputSettings
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.loss import fitting_period
from emsplat.statistics.schedule import ranks_told_apart
from emsplat.symmetry import symmetry_operators
from emsplat.versions import __version__

Found = TypeVar("Found")

GRID_BYTES = 600 << 20  # size of the grids of bins that are filled at once
SOUGHT = 6  # number of components that are learnt at first; those that the halves do not share are dropped
FINEST_SHELL = 23  # finest shell of the subspace and of the rounds
LEARNT_FROM = 25_000  # largest number of images of a half; more would take memory and hardly help the components
# Box of the rounds, by that of the frequencies that place the images: the Gaussians of a decoder can be as fine as its
# grid, and what lies beyond the last frequency shapes what lies before it.
_BEYOND = 1.33
# Largest box of the rounds, by the working box; if it would be larger, the latter is used. With rounds on 64 voxels,
# maps of two states (1,200 images of 96²) scored 0.943, and with rounds on 96 they scored 0.953, in 1.4 times the time.
_MUCH_SMALLER = 0.5
_BLOCK = 4096  # images whose samples are held at once when all images are used
# Settings that only say where files lie and how fast the work goes.
_NO_MATTER = {*(field.name for field in fields(InputSettings)), "threads", "device", "mask"}


@dataclass(frozen=True)
class Work:
    """The data and settings that all stages need."""

    table: Particles
    images: ImageSource
    noise: NDArray[np.float64]
    consensus: Reconstruction
    grid: Grid
    sphere: NDArray[np.float32]  # (D, D, D) mask within which components are sought
    latent: NDArray[np.int64]  # (N,) rows that share one latent share a number
    limit_shell: int
    settings: HeterogeneitySettings
    context: Context

    @property
    def reporter(self) -> Reporter:
        return self.context.reporter

    @property
    def world(self) -> World:
        return self.context.world

    def rows(self, half: int) -> NDArray[np.int64]:
        """The rows of a half in the order of the disk, except that images that share a latent are neighbours."""
        order = reading_order(self.table)
        return side_by_side(order[self.table.half_set[order] == half], self.latent)

    def sample(self, half: int) -> NDArray[np.int64]:
        """The rows from which a half's components are learnt; all images of a particle or none."""
        rows = self.rows(half)
        if len(rows) <= LEARNT_FROM:
            return rows
        rng = np.random.default_rng(self.settings.seed + half)
        number = np.unique(self.table.particle[rows], return_inverse=True)[1]
        count = number.max() + 1
        return rows[np.isin(number, rng.choice(count, count * LEARNT_FROM // len(rows), replace=False))]

    def observe(self, rows: NDArray[np.int64], box_size: int, limit_shell: int) -> Observations:
        return observe(self.table, self.images, rows, self.noise, box_size, limit_shell, self.latent)

    def at_stage(self, rows: NDArray[np.int64], stage: Stage) -> Observations:
        return self.observe(rows, stage.box_size, stage.limit_shell)

    def mean(self, half: int) -> NDArray[np.float32]:
        """(D, D, D) consensus of the half, on the scale of the images."""
        return self.consensus.half_maps[half - 1]

    @property
    def stages(self) -> list[Stage]:
        return stages(self.table.box_size, self.limit_shell)

    @property
    def accumulation(self) -> AccumulationSettings:
        """The settings of accumulations on the working grid, which fill some grids at a time."""
        return AccumulationSettings(
            self.grid.box_size, fitting_period(self.grid.extent), self.noise, self.grid.symmetry, GRID_BYTES
        )

    def for_rounds(self) -> Work:
        """The work on a coarser grid, if that is much smaller and holds all frequencies that place the images."""
        box_size = box_of_rounds(self.stages[-1].box_size, self.grid.box_size)
        if box_size == self.grid.box_size:
            return self
        grid = working_grid(self.table, self.grid.diameter_in_angstroms, self.grid.symmetry, box_size)
        return replace(self, grid=grid)

    def in_blocks(
        self, half: int, of: Callable[[Observations], Found], title: str
    ) -> Iterator[tuple[NDArray[np.int64], Found]]:
        """The rows of each block of this rank's share of a half's images, and the result of a function of them.

        Args: title: of the progress bar.
        """
        rows, stage, world = self.rows(half), self.stages[-1], self.world
        blocks = blocks_of_particles(self.latent[rows], _BLOCK)[world.rank :: world.size]
        with self.reporter.bar(title, "images") as advance:
            for done, here in enumerate(blocks, 1):
                block = rows[here]
                yield block, of(self.observe(block, stage.box_size, stage.limit_shell))
                advance(min(done * _BLOCK * world.size, len(rows)), len(rows))

    def shared(self, filled: NDArray[np.bool_], *arrays: NDArray[Any]) -> None:
        """Give every rank the rows that the others have filled. Args: filled: (N,) the rows that this one has."""
        if self.world.size > 1:
            for array in arrays:
                array[~filled] = 0
                self.world.sum(array)


def make_work(
    images: ImageSource,
    consensus: Reconstruction,
    focus: NDArray[np.float32] | None,
    settings: HeterogeneitySettings,
    context: Context,
) -> Work:
    """The work on the particles of a consensus. Args: focus: (D, D, D) mask within which variability is sought."""
    table = consensus.particles
    box_size, pixel_size = table.box_size, table.pixel_size_in_angstroms
    edge = box_size * pixel_size
    diameter = settings.mask_diameter or consensus.preview.diameter_in_angstroms or maps.PARTICLE_SHARE * edge
    diameter = min(1.15 * diameter, 0.95 * edge)  # moving parts may extend beyond the consensus
    finest = 2 * pixel_size if settings.max_resolution is None else settings.max_resolution
    grid = working_grid(table, diameter, symmetry_operators("C1"), _box_for(table, finest))
    sphere = maps.soft_sphere(box_size, diameter / pixel_size, 0.05 * box_size)
    if focus is not None:
        sphere = focus
    limit = min(consensus.validation.limit_shell, FINEST_SHELL, box_size // 2 - 1, int(edge / finest))
    return Work(
        table, images, consensus.preview.noise, consensus, grid, sphere, shared_latents(table), limit, settings, context
    )


def _box_for(table: Particles, finest: float) -> int:
    """Edge in voxels of the box that holds this resolution (Å)."""
    full = table.box_size
    needed = int(np.ceil(2 * full * table.pixel_size_in_angstroms / finest))
    return min(full, max(16, scipy.fft.next_fast_len(needed, real=True)))


def box_of_rounds(placing: int, working: int) -> int:
    """Edge in voxels of the grid on which decoders are fitted in the rounds.

    Args: placing: box of the frequencies that place the images; working: working box, on which the last fit is made.
    """
    found = scipy.fft.next_fast_len(int(np.ceil(_BEYOND * placing)), real=True)
    return found if found <= _MUCH_SMALLER * working else working


def identity(
    table: Particles, settings: HeterogeneitySettings, focus: NDArray[np.float32] | None, world: World
) -> dict[str, Any]:
    """Everything that must be the same for a search to be resumed.

    Args: table: the particles of the consensus, refined if that was asked for.
    """
    asked = {name: value for name, value in asdict(settings).items() if name not in _NO_MATTER}
    mask = None if focus is None else zlib.crc32(np.ascontiguousarray(focus).tobytes())
    return {
        "emsplat": __version__,
        "particles": table.fingerprint(),
        "checksum of the mask": mask,
        "ranks": ranks_told_apart(world.size),
    } | asked
