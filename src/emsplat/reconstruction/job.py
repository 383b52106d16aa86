"""What a reconstruction works with: found once, the same for every pass and every fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from emsplat.fit.by_images import Schedule
from emsplat.particles.batches import Images
from emsplat.poses.refine import Blocks
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
class WorkSettings:
    """How much is done at a time and how often, which a user need not set."""

    block_bytes: int = 48 << 20  # of images that are accumulated at once
    refine_rounds: int = 4  # at most
    refine_blocks: Blocks = Blocks()  # noqa: RUF009 (frozen)
    schedule: Schedule = field(default_factory=Schedule)  # of fits to images


@dataclass(frozen=True)
class Job:
    """The images and how they are looked at, and the surroundings in which the work is done."""

    images: Images
    preview: Preview
    grid: Grid
    settings: ReconstructSettings
    context: Context
    work: WorkSettings = WorkSettings()

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
        return replace(accumulation_settings(self.grid, self.preview), block_bytes=self.work.block_bytes)


def accumulation_settings(grid: Grid, preview: Preview) -> AccumulationSettings:
    """Settings with T as far as a fit in the grid's cube needs it."""
    return AccumulationSettings(grid.box_size, fitting_period(grid.extent), preview.noise, grid.symmetry)
