"""Particles with poses → both half maps, and how far they can be trusted: accumulation, fits, validation.

What is finished is kept in checkpoints, and loaded from them when a job is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from emsplat.fit.by_images import HalfSet, fit_images
from emsplat.fit.by_statistics import FitSettings
from emsplat.fit.state import FitHistory
from emsplat.fourier import maps
from emsplat.io.images import reading_order
from emsplat.models.gaussian_model import GaussianModel
from emsplat.particles.parts import HELD_OUT, TRAINING, Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.reconstruction.halves import Fit, Half, Parts, fit_half, kept_half, watching
from emsplat.reconstruction.job import Job
from emsplat.runtime import devices
from emsplat.runtime.context import Task
from emsplat.runtime.memory import give_back_free_memory
from emsplat.runtime.stopwatch import Stopwatch
from emsplat.runtime.threads import kernels_may_meet, side_by_side
from emsplat.statistics.distributed import accumulate_shared
from emsplat.statistics.sufficient import Statistics, restored_statistics, saved_statistics
from emsplat.validation.directions import measured_density
from emsplat.validation.validate import Validation, validate


@dataclass(frozen=True)
class Solution:
    """Both half maps, and how far they can be trusted."""

    halves: tuple[Half, Half]
    mask: NDArray[np.float32]  # (D, D, D)
    validation: Validation


def solve(job: Job, table: Particles) -> Solution:
    """The accumulation over the images, the fits of each half, and their validation; the same on every rank."""
    job = replace(job, context=job.context.within(table.fingerprint()))
    world, parts = job.world, PartWeights.half_sets(table, job.settings.seed)
    # A half is fitted to its statistics by the rank that they are summed on, to its images by all ranks together.
    fits = _SharedFits(job, table, parts) if job.settings.solver == "images" else None
    gatherer = {half: world.owner(half) for half in (1, 2)}
    owner = {1: 0, 2: 0} if fits else gatherer
    halves, needed = _kept_halves(job, owner)
    statistics = _statistics(job, table, parts, gatherer, needed)
    if fits:
        everywhere = {half: world.broadcast(statistics.pop(half, None), gatherer[half]) for half in needed}
        statistics = everywhere if world.is_first else {}
        del everywhere
    give_back_free_memory()
    halves |= _fitted_halves(job, statistics, fits.lead if fits else None)
    with job.reporter.stage("fit"):
        if fits:
            fits.follow()
        first, second = (world.broadcast(halves.get(number), owner[number]) for number in (1, 2))
    return _validated(job, table, (first, second))


def _fitted_halves(job: Job, statistics: dict[int, Parts], by_images: Fit | None) -> dict[int, Half]:
    """The halves that this rank fits; both at the same time if they can share the processor.

    A fit with half of the threads takes far less than twice as long, because parts of each step cannot be shared.
    The statistics of a half are freed as soon as it is fitted, because they are the largest thing in memory.
    """

    def fitted(number: int) -> Half:
        half = fit_half(job, number, statistics.pop(number), by_images)
        give_back_free_memory()
        return half

    numbers = sorted(statistics)
    if by_images or job.context.device != devices.CPU or not kernels_may_meet():
        return {number: fitted(number) for number in numbers}
    return dict(zip(numbers, side_by_side(fitted, numbers, give_up=job.context.given_up.set), strict=True))


def _validated(job: Job, table: Particles, halves: tuple[Half, Half]) -> Solution:
    """The halves and what can be believed of them, found by the first rank."""
    with job.reporter.stage("validation"):
        if not job.world.is_first:
            return job.world.broadcast(None)
        first, second = halves
        pixel_size = table.pixel_size_in_angstroms
        if job.mask is None:
            mask = maps.soft_mask(0.5 * (first.map + second.map), pixel_size, job.grid.diameter_in_angstroms)
        else:
            mask = job.mask.values
        symmetry = job.grid.symmetry
        density = measured_density(table.poses.rotations, symmetry)
        four = (first.raw, second.raw, first.map, second.map)
        by_bands = job.mask is not None
        validation = validate(*four, mask, pixel_size, job.settings.seed, symmetry, density, by_bands)
        return job.world.broadcast(Solution(halves, mask, validation))


@dataclass(frozen=True)
class _SharedFits:
    """Fits to images in which all ranks take part. The first rank begins each of them."""

    job: Job
    table: Particles
    parts: PartWeights

    def lead(
        self, number: int, start: GaussianModel, settings: FitSettings, task: Task
    ) -> tuple[GaussianModel, FitHistory]:
        """Begin a fit on all ranks. Only the first rank calls this."""
        self.job.world.broadcast((number, start, settings))
        return self._fit(number, start, settings, task)

    def follow(self) -> None:
        """Take part in all fits that the first rank still begins. The first rank calls this when there are no more."""
        nothing: tuple[int, GaussianModel, FitSettings] | None = None
        while asked := self.job.world.broadcast(nothing):
            number, start, settings = asked
            self._fit(number, start, settings, Task(self.job.world, watch=watching(self.job, number)))

    def _fit(
        self, number: int, start: GaussianModel, settings: FitSettings, task: Task
    ) -> tuple[GaussianModel, FitHistory]:
        job, order = self.job, reading_order(self.table)
        training, held_out = (self.parts.rows_of(Part(number, split), order) for split in (TRAINING, HELD_OUT))
        noise, grid = job.preview.noise, job.grid
        half = HalfSet(self.table, job.images, training, held_out, noise, grid.box_size, grid.symmetry)
        return fit_images(half, start, settings, job.tuning.schedule_by_images, task)


def _kept_halves(job: Job, owner: dict[int, int]) -> tuple[dict[int, Half], list[int]]:
    """The halves of this rank that were finished before the job ended, and those that no rank has."""
    world = job.world
    mine = {half: kept for half in (1, 2) if owner[half] == world.rank and (kept := kept_half(job, half))}
    return mine, [half for half in (1, 2) if not world.broadcast(half in mine, owner[half])]


def _statistics(
    job: Job, table: Particles, parts: PartWeights, owner: dict[int, int], needed: list[int]
) -> dict[int, Parts]:
    """The statistics of the needed halves that this rank owns, accumulated or loaded from a checkpoint."""
    world, checkpoints, reporter = job.world, job.checkpoints, job.reporter
    mine = [half for half in needed if owner[half] == world.rank]
    kept = {half: state for half in mine if (state := checkpoints.named(f"statistics{half}").load())}
    if all(world.gather(len(kept) == len(mine))):
        return {half: _parts_of(half, restored_statistics(state)) for half, state in kept.items()}
    del kept
    checkpoint = checkpoints.named("pass" if world.size == 1 else f"pass-rank{world.rank}of{world.size}")
    owner_of_part = {part: owner[part.half] for part in parts.parts}
    stopwatch = Stopwatch(job.context.device)
    give_back_free_memory()
    with reporter.stage("pass"), job.context.task("reading images", "images", checkpoint) as task:
        inputs = table, job.images, parts, job.accumulation_settings, owner_of_part
        found: dict[Part, Statistics] = {}
        for group in accumulate_shared(*inputs, task, stopwatch):
            found |= group
    reporter.line(f"accumulation: {stopwatch.text()}")
    written = [
        checkpoint.followed_by(f"statistics{half}").offer(partial(saved_statistics, _only(half, found)))
        for half in mine
    ]
    if all(world.gather(all(written))):
        checkpoint.remove()
    return {half: _parts_of(half, found) for half in mine}


def _only(half: int, statistics: dict[Part, Statistics]) -> dict[Part, Statistics]:
    return {part: s for part, s in statistics.items() if part.half == half}


def _parts_of(half: int, statistics: dict[Part, Statistics]) -> Parts:
    return statistics[Part(half, TRAINING)], statistics.get(Part(half, HELD_OUT))
