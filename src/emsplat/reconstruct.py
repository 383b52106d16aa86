"""The main job: particle images → Gaussians, maps and what can be believed of them.

Read it top to bottom: look at a sample, stream over the images once, fit each half, validate.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numba
import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray

from emsplat import maps
from emsplat.count import automatic_count
from emsplat.errors import InputError
from emsplat.fit import FitHistory, FitSettings, fit_gaussians, gaussians_of, initial_gaussians
from emsplat.gaussians import Gaussians, merge
from emsplat.io import read_particles
from emsplat.io.images import ImageSource
from emsplat.particles import Particles
from emsplat.preview import Preview, look_at_sample
from emsplat.reporting import Reporter
from emsplat.statistics import PassSettings, Statistics, gather_statistics
from emsplat.symmetry import symmetry_operators
from emsplat.validation import Validation, final_map, validate

_UNSEEN_SHARE = 5  # one particle in five of a half is kept from its fit until the annealing
_FEWEST_TO_SPLIT = 40  # images of a half below which nothing is kept back
_MARGIN = 4  # voxels around the particle's sphere in which Gaussians may live


@dataclass(frozen=True)
class ReconstructSettings:
    """What can be asked of a reconstruction; None: found from the data, and said in the log."""

    datadir: Path | None = None  # where the stacks are, if not beside the star
    pixel_size: float | None = None  # Å; overrides the star and the stacks
    invert: bool = False  # the particles are dark
    n_gaussians: int | None = None  # of each half
    isotropic: bool = False
    symmetry: str = "C1"  # RELION's names and axes
    mask_diameter: float | None = None  # Å, of a sphere about the box centre that holds the particle
    max_resolution: float | None = None  # Å; finer detail is not looked at
    sharpen: float | Literal["auto"] | None = None  # B-factor in Å², negative sharpens
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        rules = (
            ("--n-gaussians", self.n_gaussians, 1, "a positive number"),
            ("--pixel-size", self.pixel_size, 1e-3, "positive, in Å"),
            ("--mask-diameter", self.mask_diameter, 1e-3, "positive, in Å"),
            ("--max-resolution", self.max_resolution, 1e-3, "positive, in Å"),
            ("--threads", self.threads, 1, "a positive number"),
            ("--seed", self.seed, 0, "0 or more"),
        )
        for option, value, least, rule in rules:
            if value is not None and not value >= least:
                raise InputError(f"{option} {value}: it must be {rule}; leave it out for the automatic choice")
        symmetry_operators(self.symmetry)


@dataclass(frozen=True)
class Half:
    """One half set's result on the particles' own grid."""

    gaussians: Gaussians
    history: FitHistory
    raw: NDArray[np.float32]  # (D, D, D) direct inversion
    map: NDArray[np.float32]  # (D, D, D) the Gaussians on the grid


@dataclass(frozen=True)
class Reconstruction:
    """What a run hands back; maps are (D, D, D) ``[z, y, x]``, the origin at voxel D//2."""

    map: NDArray[np.float32]  # average of the halves, weighted by the measured gain, sharpened if asked for
    gaussians: Gaussians  # the average as a model: both halves' Gaussians with half the masses
    halves: tuple[Half, Half]
    mask: NDArray[np.float32]
    validation: Validation
    pixel_size_in_angstroms: float
    particles: Particles  # with the half sets used
    poses_shared: bool  # half sets were not given: the resolution is an upper bound
    b_factor: float | None
    preview: Preview
    settings: ReconstructSettings
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def n_images(self) -> int:
        """Number of images used."""
        return len(self.particles)


def reconstruct(
    particles: Path | str | Particles,
    settings: ReconstructSettings | None = None,
    reporter: Reporter | None = None,
) -> Reconstruction:
    """Reconstruct a map from particle images with poses and CTFs.

    Args:
        particles: a star file, or the table read from one.
        settings: defaults are found from the data.
        reporter: told of progress; silent by default.
    Raises:
        InputError: one line on what is wrong with the input and what to do.
    """
    settings = settings or ReconstructSettings()
    reporter = reporter or Reporter()
    with _threads(settings.threads):
        with reporter.stage("read"):
            table, poses_shared = _table_with_halves(particles, settings, reporter)
        images = ImageSource(table, settings.invert)
        symmetry = symmetry_operators(settings.symmetry)
        with reporter.stage("preview"):
            preview = look_at_sample(table, images, symmetry, settings.seed)
            diameter = _diameter(preview, table, settings, reporter)
        box_size = _working_box(table, settings)
        pixel_size = table.pixel_size_in_angstroms * table.box_size / box_size
        extent = _extent(diameter / pixel_size, box_size)
        reporter.line(
            f"working box {box_size} voxels of {pixel_size:.4g} Å, Gaussians within {extent * pixel_size:.0f} Å"
        )
        statistics = _gather(table, images, preview, box_size, extent, symmetry, settings, reporter)
        halves = []
        for number in (1, 2):
            own = statistics[2 * number - 2 : 2 * number]
            halves.append(_fit_half(number, own, extent, diameter, pixel_size, table, symmetry, settings, reporter))
        statistics.clear()
        first, second = halves
        with reporter.stage("validation"):
            mean = 0.5 * (first.map + second.map)
            mask = maps.soft_mask(mean, table.pixel_size_in_angstroms, diameter)
            validation = validate(
                first.raw, second.raw, first.map, second.map, mask, table.pixel_size_in_angstroms, settings.seed
            )
            result, b_factor = _finished(mean, validation, table.pixel_size_in_angstroms, settings, reporter)
    return Reconstruction(
        map=result,
        gaussians=merge(first.gaussians, second.gaussians),
        halves=(first, second),
        mask=mask,
        validation=validation,
        pixel_size_in_angstroms=table.pixel_size_in_angstroms,
        particles=table,
        poses_shared=poses_shared,
        b_factor=b_factor,
        preview=preview,
        settings=settings,
        seconds=dict(reporter.seconds),
    )


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """All libraries on as many threads as asked for, at most the machine's."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(wanted or available, numba.config.NUMBA_NUM_THREADS)
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)
    try:
        with scipy.fft.set_workers(threads):
            yield
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def _table_with_halves(
    source: Path | str | Particles, settings: ReconstructSettings, reporter: Reporter
) -> tuple[Particles, bool]:
    """The particle table, its half sets, and whether they had to be drawn."""
    table = source
    if not isinstance(table, Particles):
        table = read_particles(
            Path(table), datadir=settings.datadir, pixel_size_in_angstroms=settings.pixel_size
        )
    for warning in table.warnings:
        reporter.warn(warning)
    particles = len(np.unique(table.particle))
    if particles < 2:
        raise InputError(f"{table.source}: {particles} particle; at least 2 are needed, one for each half set")
    reporter.line(
        f"{len(table):,} images of {particles:,} particles, box {table.box_size}, "
        f"{table.pixel_size_in_angstroms:.4g} Å/px, {len(table.optics)} optics group(s)"
    )
    given = bool(np.any(table.half_set > 0))
    if given and len(np.unique(table.half_set[table.half_set > 0])) == 1:
        reporter.warn("rlnRandomSubset puts all images into one half; half sets are drawn instead")
        table, given = replace(table, half_set=np.zeros_like(table.half_set)), False
    if not given:
        reporter.warn(
            f"no half sets in the file: drawn with seed {settings.seed}. The poses came from one reference, "
            "so the resolution will be an upper bound"
        )
    return table.with_half_sets(settings.seed), not given


def _diameter(preview: Preview, table: Particles, settings: ReconstructSettings, reporter: Reporter) -> float:
    """Å; as asked for, else as the sample shows it, else the box. Refuses particles that are surely dark."""
    reporter.line(
        f"contrast from {preview.n_sampled} images: half-sample correlation {preview.correlation:.2f}, "
        f"skewness {preview.skewness:+.2f}"
    )
    if preview.surely_dark:
        raise InputError(
            f"{table.source}: the particles are dark (skewness {preview.skewness:+.2f} of the density); "
            f"they must be white: {'leave out' if settings.invert else 'add'} --invert"
        )
    if not preview.contrast_is_sure:
        reporter.warn("the sample does not show whether the particles are white; if the map is inside out, use --invert")
    box = table.box_size * table.pixel_size_in_angstroms
    if settings.mask_diameter is not None:
        return min(settings.mask_diameter, box)
    if preview.diameter_in_angstroms is None:
        reporter.line(f"no particle outline in the sample: the diameter is taken as 85 % of the box, {0.85 * box:.0f} Å")
        return 0.85 * box
    reporter.line(f"particle diameter {preview.diameter_in_angstroms:.0f} Å about the box centre, from the sample")
    return min(preview.diameter_in_angstroms, box)


def _working_box(table: Particles, settings: ReconstructSettings) -> int:
    """Voxels of the box that just holds the finest resolution asked for; the images' own without one."""
    if settings.max_resolution is None:
        return table.box_size
    needed = 2 * table.box_size * table.pixel_size_in_angstroms / settings.max_resolution
    return min(table.box_size, max(16, scipy.fft.next_fast_len(int(np.ceil(needed)), real=True)))


def _extent(diameter: float, box_size: int) -> int:
    """Voxels of the cube in which Gaussians live: the sphere, a margin, and a size that transforms fast."""
    needed = int(np.ceil(diameter)) + 2 * _MARGIN
    return min(scipy.fft.next_fast_len(needed, real=True), box_size)


def _gather(
    table: Particles,
    images: ImageSource,
    preview: Preview,
    box_size: int,
    extent: int,
    symmetry: NDArray[np.float64],
    settings: ReconstructSettings,
    reporter: Reporter,
) -> list[Statistics | None]:
    """Statistics of the seen and the unseen part of half 1, then of half 2; an unseen part may be None."""
    subset = np.zeros(len(table), dtype=np.int8)
    for half in (1, 2):
        rows = table.half_set == half
        subset[rows] = 2 * (half - 1)
        if rows.sum() >= _FEWEST_TO_SPLIT:
            subset[rows] += _unseen(table.particle[rows], settings.seed + half)
    pass_settings = PassSettings(box_size, extent, preview.noise, symmetry)
    present, dense = np.unique(subset, return_inverse=True)
    with reporter.stage("pass"), reporter.bar("reading images", "images") as advance:
        found = gather_statistics(
            table, images, dense.astype(np.int8), pass_settings, lambda done: advance(done, len(table))
        )
    by_number = dict(zip(present.tolist(), found, strict=True))
    return [by_number.get(i) for i in range(4)]


def _unseen(particle: NDArray[np.int64], seed: int) -> NDArray[np.int8]:
    """(n,) 1 for the images of one particle in five."""
    names, inverse = np.unique(particle, return_inverse=True)
    chosen = np.arange(len(names)) % _UNSEEN_SHARE == 0
    np.random.default_rng(seed).shuffle(chosen)
    return chosen[inverse].astype(np.int8)


def _fit_half(
    number: int,
    statistics: list[Statistics | None],
    extent: int,
    diameter: float,
    pixel_size: float,
    table: Particles,
    symmetry: NDArray[np.float64],
    settings: ReconstructSettings,
    reporter: Reporter,
) -> Half:
    """Fit one half's Gaussians and put them, and the raw inversion, on the particles' grid."""
    seen, unseen = statistics
    assert seen is not None
    whole = seen + unseen if unseen else seen
    with reporter.stage("inversion"):
        raw = whole.raw_map()
        mask = maps.soft_mask(raw, pixel_size, diameter)
    count = settings.n_gaussians
    if count is None:
        count, reason = _count(seen, unseen, mask)
        reporter.line(f"half {number}: {count:,} Gaussians, {reason}")
    fit_settings = FitSettings(count, isotropic=settings.isotropic, seed=settings.seed + number)
    with reporter.stage("fit"), reporter.bar(f"fitting half {number}", "steps") as advance:
        start = initial_gaussians(seen, mask, extent, fit_settings, symmetry)
        parameters, history = fit_gaussians(seen, unseen, start, extent, fit_settings, advance)
        gaussians = gaussians_of(parameters, pixel_size)
        density = gaussians.voxelise(table.box_size, table.pixel_size_in_angstroms)
    reporter.line(
        f"half {number}: {len(gaussians):,} Gaussians after {len(history.losses)} steps, "
        f"annealed from step {history.anneal_from} ({history.stopped_by})"
    )
    if len(raw) != table.box_size:
        raw, density = (maps.fourier_resize(v, table.box_size) for v in (raw, _limited(density, len(raw))))
    return Half(gaussians, history, raw, density)


def _limited(volume: NDArray[np.float32], box_size: int) -> NDArray[np.float32]:
    """A map without the frequencies beyond a smaller working box."""
    return maps.fourier_resize(volume, box_size)


def _count(seen: Statistics, unseen: Statistics | None, mask: NDArray[np.float32]) -> tuple[int, str]:
    """The automatic number of Gaussians, and why."""
    if unseen is None:
        return 500, "too few images to measure what they hold"
    count, coefficients = automatic_count(seen, unseen, mask)
    return count, f"for {coefficients:,.0f} measurable Fourier coefficients"


def _finished(
    mean: NDArray[np.float32],
    validation: Validation,
    pixel_size: float,
    settings: ReconstructSettings,
    reporter: Reporter,
) -> tuple[NDArray[np.float32], float | None]:
    """The map handed out and the B-factor applied to it."""
    if validation.resolution_kind == "not_measurable":
        reporter.warn("nothing could be measured: map.mrc is the plain average of the Gaussian half maps")
        return mean, None
    weighted = final_map(mean, validation)
    b_factor = settings.sharpen
    if b_factor == "auto":
        b_factor = maps.estimate_b_factor(weighted, pixel_size, validation.resolution)
        if b_factor is None:
            reporter.warn("the resolution does not reach far enough to estimate a B-factor; the map is not sharpened")
    if b_factor is None:
        return weighted, None
    reporter.line(f"sharpened with a B-factor of {b_factor:.0f} Å²")
    return maps.sharpen(weighted, b_factor, pixel_size, validation.resolution), b_factor
