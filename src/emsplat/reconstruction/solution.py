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
from emsplat.reconstruction.halves import Half, Parts, fit_half, kept_half, watching
from emsplat.reconstruction.job import Job
from emsplat.runtime.checkpoint import Checkpoint
from emsplat.runtime.context import Task
from emsplat.runtime.stopwatch import Stopwatch
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
    halves = _by_images(job, table, parts) if job.settings.solver == "images" else _by_statistics(job, table, parts)
    with job.reporter.stage("validation"):
        if not world.is_first:
            return world.broadcast(None)
        first, second = halves
        pixel_size = table.pixel_size_in_angstroms
        mask = maps.soft_mask(0.5 * (first.map + second.map), pixel_size, job.grid.diameter_in_angstroms)
        symmetry = job.grid.symmetry
        density = measured_density(table.rotations(), symmetry)
        four = (first.raw, second.raw, first.map, second.map)
        validation = validate(*four, mask, pixel_size, job.settings.seed, symmetry, density)
        return world.broadcast(Solution(halves, mask, validation))


def _by_statistics(job: Job, table: Particles, parts: PartWeights) -> tuple[Half, Half]:
    """Each half is fitted by the rank that its statistics are summed on."""
    owner = {half: job.world.owner(half) for half in (1, 2)}
    mine, needed = _finished(job, owner)
    statistics = _statistics(job, table, parts, owner, needed)
    for number in sorted(statistics):
        # The statistics of a half are freed as soon as it is fitted, because they are the largest thing in memory.
        mine[number] = fit_half(job, number, statistics.pop(number), None)
    return _exchanged(job, mine, owner)


def _by_images(job: Job, table: Particles, parts: PartWeights) -> tuple[Half, Half]:
    """All ranks fit to the images of one half after the other, and the first rank leads."""
    world, fits = job.world, _SharedFits(job, table, parts)
    gatherer, owner = {half: world.owner(half) for half in (1, 2)}, {1: 0, 2: 0}
    mine, needed = _finished(job, owner)
    statistics = _statistics(job, table, parts, gatherer, needed)
    statistics = {half: world.broadcast(statistics.pop(half, None), gatherer[half]) for half in needed}
    if world.is_first:
        for number in sorted(statistics):
            mine[number] = fit_half(job, number, statistics.pop(number), fits.lead)
    del statistics
    with job.reporter.stage("fit"):
        fits.follow()
    return _exchanged(job, mine, owner)


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


def _finished(job: Job, owner: dict[int, int]) -> tuple[dict[int, Half], list[int]]:
    """The halves of this rank that were finished before the job ended, and those that no rank has."""
    world = job.world
    mine = {half: kept for half in (1, 2) if owner[half] == world.rank and (kept := kept_half(job, half))}
    return mine, [half for half in (1, 2) if not world.broadcast(half in mine, owner[half])]


def _exchanged(job: Job, mine: dict[int, Half], owner: dict[int, int]) -> tuple[Half, Half]:
    """Both halves, on every rank, when they are fitted."""
    with job.reporter.stage("fit"):
        first, second = (job.world.broadcast(mine.get(number), owner[number]) for number in (1, 2))
    return first, second


def _statistics(
    job: Job, table: Particles, parts: PartWeights, owner: dict[int, int], needed: list[int]
) -> dict[int, Parts]:
    """The statistics of the needed halves that this rank owns, accumulated or loaded from a checkpoint."""
    world, checkpoints = job.world, job.checkpoints
    mine = [half for half in needed if owner[half] == world.rank]
    kept = {half: state for half in mine if (state := checkpoints.named(f"statistics{half}").load())}
    if all(world.gather(len(kept) == len(mine))):
        return {half: _parts_of(half, restored_statistics(state)) for half, state in kept.items()}
    del kept
    checkpoint = checkpoints.named("pass" if world.size == 1 else f"pass-rank{world.rank}of{world.size}")
    found = _accumulate(job, table, parts, owner, checkpoint)
    written = [
        checkpoint.followed_by(f"statistics{half}").offer(partial(saved_statistics, _only(half, found)))
        for half in mine
    ]
    if all(world.gather(all(written))):
        checkpoint.remove()
    return {half: _parts_of(half, found) for half in mine}


def _accumulate(
    job: Job, table: Particles, parts: PartWeights, owner: dict[int, int], checkpoint: Checkpoint
) -> dict[Part, Statistics]:
    """The statistics of the parts that this rank owns."""
    owners = {part: owner[part.half] for part in parts.parts}
    reporter, stopwatch = job.reporter, Stopwatch(job.context.device)
    with reporter.stage("pass"), job.context.task("reading images", "images", checkpoint) as task:
        found = accumulate_shared(table, job.images, parts, job.accumulation_settings, owners, task, stopwatch)
    reporter.line(f"accumulation: {stopwatch.text()}")
    return found


def _only(half: int, statistics: dict[Part, Statistics]) -> dict[Part, Statistics]:
    return {part: s for part, s in statistics.items() if part.half == half}


def _parts_of(half: int, statistics: dict[Part, Statistics]) -> Parts:
    return statistics[Part(half, TRAINING)], statistics.get(Part(half, HELD_OUT))
