"""What a reconstruction works with. It is found once and is the same for every accumulation and every fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from emsplat.particles.batches import Images
from emsplat.reconstruction.given_mask import GivenMask
from emsplat.reconstruction.tuning import Tuning
from emsplat.reconstruction.working_grid import Grid
from emsplat.runtime.checkpoint import Checkpoints
from emsplat.runtime.context import Context
from emsplat.runtime.ranks import World
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.loss import fitting_period
from emsplat.statistics.preview import Preview


@dataclass(frozen=True)
class Job:
    """The images and how they are looked at, and the surroundings in which the work is done."""

    images: Images
    preview: Preview
    grid: Grid
    settings: ReconstructSettings
    context: Context
    tuning: Tuning = field(default_factory=Tuning)
    mask: GivenMask | None = None  # None: it is made from the data

    @property
    def reporter(self) -> Reporter:
        return self.context.reporter

    @property
    def world(self) -> World:
        return self.context.world

    @property
    def checkpoints(self) -> Checkpoints:
        return self.context.checkpoints

    @property
    def accumulation_settings(self) -> AccumulationSettings:
        return accumulation_settings(self.grid, self.preview, self.tuning)


def accumulation_settings(grid: Grid, preview: Preview, tuning: Tuning) -> AccumulationSettings:
    """Settings with T as far as a fit in the grid's cube needs it."""
    extent, block_bytes = fitting_period(grid.extent), tuning.accumulation_block_bytes
    return AccumulationSettings(grid.box_size, extent, preview.noise, grid.symmetry, block_bytes=block_bytes)
