"""From a particle file to a plan: look at the file as the job would, measure, and apply the formulas."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from emsplat.abinitio.alternation import reconstruct_settings
from emsplat.abinitio.job import Job as SearchJob
from emsplat.abinitio.job import diameter_of, said_of, table_of, with_poses
from emsplat.abinitio.look import look_at
from emsplat.abinitio.polar import MOST_IN_MEMORY
from emsplat.errors import InputError
from emsplat.fit.count import supported_count
from emsplat.fourier.maps import PARTICLE_SHARE
from emsplat.heterogeneity.rounds import MOST_ROUNDS
from emsplat.heterogeneity.states import states_of
from emsplat.io import read_input
from emsplat.io.images import ImageSource
from emsplat.particles.table import Particles
from emsplat.plan.abinitio import PoseRates, measured_pose_search, pose_search_stages
from emsplat.plan.cluster import Cluster
from emsplat.plan.heterogeneity import (
    BINS_OF_AN_IMAGE,
    Search,
    SearchRates,
    measured_search,
    search_of,
    search_stages,
)
from emsplat.plan.model import STEPS, Job, Stage, held_bytes, stages, storage
from emsplat.plan.rates import Card, Rates, best_of, card, measured
from emsplat.reconstruction.halves import fits_of_half
from emsplat.reconstruction.working_grid import Grid, working_box, working_grid
from emsplat.runtime.context import Context
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import threads
from emsplat.settings import AbInitioSettings, ReconstructSettings
from emsplat.statistics.loss import fitting_period
from emsplat.statistics.preview import look_at_sample
from emsplat.symmetry import symmetry_operators

_BUSY = 0.5  # load of a core from which on its rates are in doubt
_FILLING = 0.35  # share of its sphere that a particle fills
_SIGMA_PER_SPACING = 0.5  # σ of a Gaussian, relative to the edge of the cube that each has for itself


@dataclass(frozen=True)
class Plan:
    """What a job will take, and the basis of this prediction."""

    job: Job
    cluster: Cluster
    rates: Rates
    card: Card | None
    stages: tuple[Stage, ...]
    assumptions: tuple[str, ...]
    search: Search | None = None  # the search for heterogeneity that follows
    search_rates: SearchRates | None = None
    pose_rates: PoseRates | None = None  # the rates of a search for poses, if that is the job

    @property
    def seconds(self) -> float:
        """Time of the whole job."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_bytes(self) -> float:
        """Memory of the largest process."""
        return held_bytes(self.job, self.rates) + max(stage.memory_bytes for stage in self.stages)

    @property
    def machine_bytes(self) -> float:
        """Memory of all processes on a machine."""
        return self.peak_bytes * self.cluster.processes_of_a_machine

    @property
    def disk_bytes(self) -> float:
        """Bytes that the job leaves on the disk."""
        return sum(stage.disk_bytes for stage in self.stages)

    @property
    def longest(self) -> Stage:
        """The stage that takes most of the time."""
        return max(self.stages, key=lambda stage: stage.seconds)

    def obstacles(self) -> list[str]:
        """What the job needs and the machines do not have."""
        found = []
        memory = 1e9 * self.cluster.memory if self.cluster.memory else _memory_bytes()
        if self.machine_bytes > memory:
            found.append(
                f"memory: {self.cluster.processes_of_a_machine} processes need {self.machine_bytes / 1e9:.3g} GB, and "
                f"a machine has {memory / 1e9:.3g} GB; start fewer of them, or set a coarser --max-resolution"
            )
        on_card = max(stage.card_bytes for stage in self.stages)
        if self.card and on_card > self.card.memory_bytes:
            found.append(
                f"GPU memory: the job needs {on_card / 1e9:.3g} GB, and the card has "
                f"{self.card.memory_bytes / 1e9:.3g} GB; set a coarser --max-resolution"
            )
        if self.cluster.ranks > self.job.n_images:
            found.append(
                f"{self.cluster.ranks} processes have {self.job.n_images} images, and each needs one; start fewer"
            )
        return found

    def summary(self) -> dict[str, Any]:
        """The whole plan as JSON can hold it, in seconds and bytes."""
        return {
            "seconds": self.seconds,
            "memory_of_a_process_in_bytes": self.peak_bytes,
            "memory_of_a_machine_in_bytes": self.machine_bytes,
            "disk_in_bytes": self.disk_bytes,
            "longest_stage": self.longest.name,
            "limited_by": self.longest.limited_by,
            "obstacles": self.obstacles(),
            "stages": [
                {
                    "name": stage.name,
                    "seconds": stage.seconds,
                    "limited_by": stage.limited_by,
                    "seconds_of_resources": stage.parts,
                    "seconds_that_overlap_with_nothing": stage.extra,
                    "memory_in_bytes": held_bytes(self.job, self.rates) + stage.memory_bytes,
                    "disk_in_bytes": stage.disk_bytes,
                    "gpu_memory_in_bytes": stage.card_bytes,
                }
                for stage in self.stages
            ],
            "job": asdict(self.job),
            "cluster": asdict(self.cluster),
            "rates": asdict(self.rates),
            "gpu": asdict(self.card) if self.card else None,
            "heterogeneity": asdict(self.search_rates) if self.search_rates else None,
            "abinitio": asdict(self.pose_rates) if self.pose_rates else None,
            "assumptions": list(self.assumptions),
        }


def plan(
    path: Path, settings: ReconstructSettings, cluster: Cluster, reporter: Reporter, n_components: int | None = None
) -> Plan:
    """Predict what `reconstruct` with these settings takes on these machines; raises the same InputErrors.

    Args:
        n_components: predict a search for heterogeneity that finds this many components.
    """
    busy = _busy()
    if settings.model != "gaussians":
        raise InputError(f"--model {settings.model}: a plan predicts fits of Gaussians only; leave out --model")
    with threads(settings.threads):
        start = time.perf_counter()
        with reporter.stage("reading the table"):
            table = read_input(path, settings)
        table_seconds = time.perf_counter() - start
        symmetry = symmetry_operators(settings.symmetry)
        with ImageSource(table, settings.invert) as images:
            preview_seconds = math.inf
            with reporter.stage("looking at a sample"):
                for _ in range(2):  # the first time kernels may have to be compiled
                    start = time.perf_counter()
                    preview = look_at_sample(table, images, symmetry, settings.seed)
                    preview_seconds = min(preview_seconds, time.perf_counter() - start)
            edge = table.box_size * table.pixel_size_in_angstroms
            diameter = min(settings.mask_diameter or preview.diameter_in_angstroms or PARTICLE_SHARE * edge, edge)
            grid = working_grid(table, diameter, symmetry, working_box(table, settings))
            job = job_of(table, settings, grid)
            with reporter.stage("measuring"):
                cores = settings.threads or _cores()
                took = (reporter.seconds.get("loading", 0.0), table_seconds, preview_seconds)
                rates = measured(table, images, preview, job, symmetry, cores, *took)
                search = None
                if n_components:
                    size = search_of(job, n_components, table, settings.max_resolution)
                    search = size, measured_search(table, images, preview, size)
    found = of_rates(job, cluster, rates, card() if cluster.gpus else None)
    found = replace(found, assumptions=(*found.assumptions, *busy))
    return found if search is None else with_search(found, *search)


def with_search(plan: Plan, search: Search, rates: SearchRates) -> Plan:
    """The plan of a search for heterogeneity, from that of its consensus."""
    states = states_of(search.consensus.n_images)
    lines = (
        f"the images vary along {search.n_components} components (--components), so that there are {search.n_bins} "
        f"bins, {search.n_points} points and {states} states; if none is found, the job ends after the subspace",
        f"{MOST_ROUNDS} rounds are made after the first fit, the most that there are; an image has a share in "
        f"{BINS_OF_AN_IMAGE:g} bins",
    )
    added = search_stages(search, plan.cluster, plan.rates, rates)
    return replace(
        plan, stages=(*plan.stages, *added), assumptions=(*plan.assumptions, *lines), search=search, search_rates=rates
    )


def plan_poses(path: Path, settings: AbInitioSettings, cluster: Cluster, reporter: Reporter) -> Plan:
    """Predict what `ab_initio` with these settings takes on these machines; raises the same InputErrors."""
    busy = _busy()
    with threads(settings.threads):
        start = time.perf_counter()
        with reporter.stage("reading the table"):
            table = table_of(said_of(path, settings), settings, reporter)
        table_seconds = time.perf_counter() - start
        with ImageSource(table, settings.invert) as images:
            with reporter.stage("looking at a sample"):
                look = look_at(table, images, settings.seed)
                look_seconds = best_of(lambda: look_at(table, images, settings.seed), 1)
                diameter = diameter_of(look, table, settings, reporter)
            with reporter.stage("measuring the search"):
                search_job = SearchJob(table, images, look, diameter, settings, Context(reporter=reporter))
                found = measured_pose_search(search_job, look_seconds)
            with reporter.stage("measuring"):
                rotations = Rotation.random(len(table), random_state=0).as_matrix()
                table = with_poses(table, rotations, np.zeros((len(table), 2)))
                solving = reconstruct_settings(search_job, refine=True)
                symmetry = search_job.symmetry
                grid = working_grid(table, diameter, symmetry, working_box(table, solving))
                job = job_of(table, solving, grid)
                preview = look_at_sample(table, images, symmetry, settings.seed)
                took = (reporter.seconds.get("loading", 0.0), table_seconds, look_seconds)
                rates = measured(table, images, preview, job, symmetry, settings.threads or _cores(), *took)
    lines = [*found.lines(), *_assumed(job, cluster, rates, None), *busy]
    in_file = found.samples_bytes_per_image * len(table)
    if in_file > 2 * MOST_IN_MEMORY:
        lines.append(f"temporary files take {in_file / 1e9:.2g} GB while the search runs (in --cache, or in TMPDIR)")
    needed = tuple(pose_search_stages(job, cluster, rates, found))
    return Plan(job, cluster, rates, None, needed, tuple(lines), pose_rates=found)


def of_rates(job: Job, cluster: Cluster, rates: Rates, gpu: Card | None) -> Plan:
    """The plan of a job whose rates are known."""
    return Plan(
        job, cluster, rates, gpu, tuple(stages(job, cluster, rates, gpu)), tuple(_assumed(job, cluster, rates, gpu))
    )


def job_of(table: Particles, settings: ReconstructSettings, grid: Grid) -> Job:
    """The size of the job, estimated before there is a map."""
    n_fits = fits_of_half(settings)
    voxels = _FILLING * math.pi / 6 * (grid.diameter_in_angstroms / grid.pixel_size) ** 3
    count = settings.n_gaussians or supported_count(voxels, n_fits)
    return Job(
        n_images=len(table),
        box=table.box_size,
        working_box=grid.box_size,
        extent=grid.extent,
        reach=max(fitting_period(grid.extent), grid.box_size),
        n_gaussians=count,
        n_fits=n_fits,
        sigma=max(0.7, _SIGMA_PER_SPACING * (voxels / count) ** (1 / 3)),
        n_symmetry=len(grid.symmetry),
        refined=bool(settings.refined),
        cached=settings.cache is not None,
        by_images=settings.solver == "images",
    )


def _assumed(job: Job, cluster: Cluster, rates: Rates, gpu: Card | None) -> list[str]:
    """A line on each thing that was not measured."""
    lines = [f"every machine is like this one, with {rates.cores} cores"]
    if cluster.machines > 1 and not cluster.storage:
        total = storage(cluster, rates) / 1e9
        lines.append(
            f"the file system delivers to every machine the {rates.disk_bytes_per_second / 1e9:.2g} GB/s measured "
            f"here, {total:.3g} GB/s together; set the true rate with --storage"
        )
    if cluster.ranks > 1:
        lines.append(f"sums travel at {cluster.network:g} Gbit/s (--network), also within a machine")
    lines.append(
        f"each half has {job.n_fits} fits of {job.n_gaussians:,} Gaussians with {STEPS} steps, the most that signal up "
        "to the finest shell would take"
    )
    if job.working_box > rates.pass_box:
        lines.append(f"the accumulation was measured at {rates.pass_box}² and grows with the area of an image")
    if gpu:
        how = "measured here" if gpu.measured else "60 % of the memory rate and 80 % of the link rate of its data sheet"
        lines.append(f"GPU: {gpu.name} ({how}); memory limits its kernels, to {gpu.bytes_per_second / 1e12:.2g} TB/s")
    if job.by_images:
        lines.append("--solver images is not modelled: the fit is that of --solver statistics, which is much faster")
    return lines


def _busy() -> list[str]:
    """A line if other programs keep this machine so busy that its rates cannot be measured well."""
    load, cores = os.getloadavg()[0], _cores()
    if load < _BUSY * cores:
        return []
    return [
        f"this machine was busy when its rates were measured (load {load:.1f} on {cores} cores), so that the job may "
        "be several times faster; plan again on an idle machine"
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> float:
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
